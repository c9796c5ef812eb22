"""kill -9, SIGTERM and Ctrl-C at random moments of the commands that take long.

What was finished is never lost, the same command goes on or starts again, and in the end everything
is bit-identical to what an undisturbed command leaves. Two commands at once never mix.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundle_cache import converted
from command_server import CommandServer, command_server
from small import CAPTIONS, save_random_model, trainable_model
from train_process import (
    arguments,
    finish,
    hashes,
    logged,
    resuming,
    started,
    wait_until,
)

from mdm_apple.config.strict_json import to_json
from mdm_apple.conversion.bundle.folder import MANIFEST, bundle_folder
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.errors import BundleError
from mdm_apple.conversion.source.model import load_source
from mdm_apple.storage.atomic_folder import has_file, locate
from mdm_apple.storage.files import atomic_file, locked_place
from mdm_apple.storage.model_folder import load_weights
from mdm_apple.text.captions import CAPTIONS as CAPTIONS_FILE
from mdm_apple.text.captions import write_captions
from mdm_apple.training.run_folder import killed_unsaved

# --- kill -9 inside the writing of a checkpoint --------------------------------------------------

STEP = 0.3  # seconds, about: a kill falls somewhere in a step and its save


def killed_at_random(config: Path, out: Path, steps: int, kills: int, seed: int) -> Counter[str]:
    """Run until `kills` processes were killed, and then to the end.

    Of three kills one falls a random moment into the writing of a save, one at the moment when its
    files move into place, and one anywhere. Returns what the kills left behind.
    """
    asked = arguments(config, "twemoji", out, steps, "--save-every", "1")
    luck, left = random.Random(seed), Counter[str]()
    for number in range(kills):
        saved_before = step_of(out)
        command = resuming(asked) if saved_before else asked
        with started(command) as process:
            assert wait_until(lambda before=saved_before: step_of(out) > before, process)
            if number % 3 == 0:
                assert wait_until((out / ".saving").exists, process, pause=0.0)
                time.sleep(luck.random() * 0.02)
            elif number % 3 == 1:
                assert wait_until((out / ".commit").exists, process, pause=0.0)
            else:
                time.sleep(luck.random() * STEP)
            assert process.poll() is None, "the run was over before the kill; give it more steps"
            process.kill()
            process.wait()
        left.update(f for f in (".saving", ".commit") if (out / f).exists())
        load_weights(out)  # whole at any moment, also for a reader that tidies nothing
    done = finish(resuming(asked))
    assert done.returncode == 0, done.stderr
    return left


def step_of(out: Path) -> int:
    """The last step that counts as saved, 0 for none."""
    if not has_file(out, "training.json"):
        return 0
    try:
        text = locate(out, "training.json").read_text()
        return int(text.rsplit('"step":', 1)[1].strip(" }\n"))
    except (FileNotFoundError, IndexError):  # it moved just now
        return 0


def check(tmp_path: Path, steps: int, kills: int, seed: int) -> Counter[str]:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    done = finish(arguments(config, "twemoji", whole, steps, "--save-every", "1"))
    assert done.returncode == 0, done.stderr
    left = killed_at_random(config, disturbed, steps, kills, seed)
    assert hashes(disturbed) == hashes(whole)
    assert logged(disturbed) == logged(whole)
    assert list(logged(whole)) == list(range(steps))
    assert sorted(p.name for p in disturbed.iterdir()) == sorted(p.name for p in whole.iterdir())
    return left


def test_a_run_that_was_killed_twice_ends_bit_identical(tmp_path: Path) -> None:
    check(tmp_path, steps=14, kills=2, seed=0)


@pytest.mark.slow
def test_a_run_that_was_killed_twenty_times_ends_bit_identical(tmp_path: Path) -> None:
    left = check(tmp_path, steps=160, kills=20, seed=1)
    print(f"kills inside a save: {dict(left)} of 20")
    assert left[".saving"] >= 4


# --- any command, any signal ---------------------------------------------------------------------

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
# what a command that tidies up ends with; before it has begun and when it is over, the signal
# itself ends it
ENDS = {
    signal.SIGKILL: (-9,),
    signal.SIGTERM: (1, 75, 128 + 15, -15),
    signal.SIGINT: (1, 75, 128 + 2, -2),
}
TEXT = ("--log-every", "1", "--save-every", "1", "--backend", "torch", "--quiet", "--seed", "5")


@dataclass(frozen=True)
class Disturbed:
    """A command that is interrupted at random moments; the same command goes on each time.

    command: to fill this folder. seconds: what it takes undisturbed. check: looks at what an
    interruption left. complete: whether that is all already. finished: looks at what the command
    left in the end.
    """

    server: CommandServer
    command: Callable[[Path], list[str | Path]]
    seconds: float
    check: Callable[[Path], None]
    complete: Callable[[Path], bool]
    finished: Callable[[Path], None]

    def interrupt(self, at: Path, number: signal.Signals, times: int) -> None:
        """Moments are printed, and repeat: they follow from the signal alone."""
        luck, rounds, folders = random.Random(int(number)), 0, 0
        out = at / f"{number.name}_0"
        while rounds < times:
            moment = luck.uniform(0.02, self.seconds)
            ended = self.server.ask(self.command(out), at, signal=(number, moment))
            print(f"{number.name} after {moment:.3f} s: {out.name} ended with {ended.code}")
            assert "Traceback" not in ended.stderr, ended.stderr
            assert ended.code in (0, *ENDS[number]), ended
            if ended.code != 0:
                rounds += 1
                self.check(out)
            if ended.code == 0 or self.complete(out):
                self.finished(out)
                folders += 1
                out = at / f"{number.name}_{folders}"
        last = self.server.ask(self.command(out), at)
        assert last.code == 0, last
        self.finished(out)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with command_server() as started_server:
        started_server.ask(["--version"], tmp_path_factory.mktemp("server"))  # it is ready
        yield started_server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(tmp_path_factory.mktemp("models") / "model", trainable_model())
    write_captions(folder / CAPTIONS_FILE, CAPTIONS)
    return folder


def undisturbed(server: CommandServer, command: list[str | Path], at: Path) -> float:
    """Seconds that the command takes; it must succeed."""
    started_at = time.monotonic()
    done = server.ask(command, at)
    assert done.code == 0, done
    return time.monotonic() - started_at


def learning(
    server: CommandServer, command: Callable[[Path], list[str | Path]], at: Path
) -> Disturbed:
    """A run of training or distillation: every save is whole, and no step is lost."""
    whole = at / "whole"
    seconds = undisturbed(server, command(whole), at)
    steps: dict[Path, int] = {}

    def check(out: Path) -> None:
        if step_of(out):
            load_weights(out)
        assert step_of(out) >= steps.get(out, 0)
        steps[out] = step_of(out)

    def finished(out: Path) -> None:
        assert hashes(out) == hashes(whole)
        assert logged(out) == logged(whole)
        assert names(out) == names(whole)
        steps.pop(out, None)

    return Disturbed(server, command, seconds, check, lambda out: False, finished)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def training(pictures: Path, model: Path, out: Path) -> list[str | Path]:
    given = ("--init", model, "--data", pictures, "--steps", "24", "--batch-size", "4")
    return ["train", *given, *TEXT, "--out", out, "--resume", "auto"]


def distillation(model: Path, out: Path) -> list[str | Path]:
    given = ("--teacher", model, "--steps", "24", "--batch-size", "4")
    return ["distill", *given, *TEXT, "--out", out, "--resume", "auto"]


def sampling(model: Path, out: Path) -> list[str | Path]:
    seeds = [word for seed in range(24) for word in ("--seed", str(seed))]
    how = ("--steps", "12", "--batch-size", "2", "--previews", "--quiet")
    return ["sample", "--model", model, "--prompt", "red heart", *seeds, *how, "--out", out]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_training_goes_on_after_twenty_interruptions(
    server: CommandServer, model: Path, pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = learning(server, lambda out: training(pictures, model, out), tmp_path)
    run.interrupt(tmp_path, number, 20)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_distillation_goes_on_after_twenty_interruptions(
    server: CommandServer, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = learning(server, lambda out: distillation(model, out), tmp_path)
    run.interrupt(tmp_path, number, 20)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_pictures_go_on_after_twenty_interruptions(
    server: CommandServer, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Every picture that is there is whole, stays, and is made only once."""
    whole = tmp_path / "whole"
    seconds = undisturbed(server, sampling(model, whole), tmp_path)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert len(expected) == 24 + 24 + 1  # pictures, their previews, and the grid
    there: dict[Path, dict[str, int]] = {}

    def check(out: Path) -> None:
        made = sorted(out.glob("[!.]*.png")) if out.exists() else []
        assert {path.name: path.read_bytes() for path in made}.items() <= expected.items()
        now = {path.name: path.stat().st_mtime_ns for path in made}
        finished_pictures = {n: t for n, t in now.items() if n.replace(".png", "_steps.png") in now}
        assert there.get(out, {}).items() <= now.items()
        there[out] = finished_pictures

    def finished(out: Path) -> None:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
        there.pop(out, None)

    run = Disturbed(
        server,
        lambda out: sampling(model, out),
        seconds,
        check,
        lambda out: (out / "grid.png").exists(),
        finished,
    )
    run.interrupt(tmp_path, number, 20)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def making(
    server: CommandServer,
    command: Callable[[Path], list[str | Path]],
    at: Path,
    number: signal.Signals,
) -> Disturbed:
    """A bundle: there as a whole or not at all, and the same command makes it from the start."""
    whole = at / "whole"
    seconds = undisturbed(server, command(whole), at)
    expected, beside = contents(whole), {"whole", "scratch", "source"}

    def check(out: Path) -> None:
        assert not out.exists() or contents(out) == expected
        if number != signal.SIGKILL:  # the next command tidies up after that
            assert not [name for name in names(at) if name.startswith(".")]

    def finished(out: Path) -> None:
        assert contents(out) == expected
        assert {name for name in names(at) if not name.startswith("SIG")} <= beside

    return Disturbed(server, command, seconds, check, Path.exists, finished)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_conversion_starts_again_and_ends_in_the_same_bytes(
    server: CommandServer, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    how = ("--layout", "monolith", "--quiet")
    run = making(server, lambda out: ["convert", model, *how, "--out", out], tmp_path, number)
    run.interrupt(tmp_path, number, 20)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_palettization_starts_again_and_ends_in_the_same_bytes(
    server: CommandServer, model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source = converted(load_source(model), tmp_path / "source", ConvertOptions("monolith")).path
    how = ("--bits", "4", "--quiet")
    run = making(server, lambda out: ["palettize", source, *how, "--out", out], tmp_path, number)
    run.interrupt(tmp_path, number, 20)


# --- two at once ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "distill", "sample", "convert"])
def test_two_at_once_never_mix(
    server: CommandServer, model: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    """One of them succeeds, with the result of a command that is alone; the other is refused, or
    comes late enough to find the work done."""
    command = {
        "train": lambda out: training(pictures, model, out),
        "distill": lambda out: distillation(model, out),
        "sample": lambda out: sampling(model, out),
        "convert": lambda out: ["convert", model, "--layout", "monolith", "--quiet", "--out", out],
    }[kind]
    whole, luck = tmp_path / "whole", random.Random(kind)
    seconds = undisturbed(server, command(whole), tmp_path)
    with command_server() as other:
        other.ask(["--version"], tmp_path)  # it has started
        for number in range(5):
            out, pause = tmp_path / f"out_{number}", luck.uniform(0, seconds)
            server.start(command(out), tmp_path)
            time.sleep(pause)
            second, first = other.ask(command(out), tmp_path), server.answer()
            print(f"the second after {pause:.3f} s: {first.code}, {second.code}")
            assert first.code == 0 or second.code == 0, (first, second)
            for ended in (first, second):
                if ended.code != 0:
                    assert ended.stderr.startswith("mdm: "), ended
                    assert ended.stderr.count("\n") == 1, ended
            if kind in ("train", "distill"):
                assert hashes(out) == hashes(whole)
                assert logged(out) == logged(whole)
                assert names(out) == names(whole)
            else:
                assert contents(out) == contents(whole)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


# --- what a killed process leaves ----------------------------------------------------------------


def test_a_file_takes_what_a_killed_process_left_of_it_along_and_nothing_else(
    tmp_path: Path,
) -> None:
    abandoned, other = tmp_path / ".a.png.7.partial", tmp_path / ".b.png.7.partial"
    living = tmp_path / ".a.png.8.partial"
    for path in (abandoned, other, living):
        path.write_bytes(b"half")
    with locked_place(living) as alone:
        assert alone
        with atomic_file(tmp_path / "a.png") as file:
            file.write(b"whole")
    assert names(tmp_path) == sorted([living.name, other.name, "a.png"])
    assert (tmp_path / "a.png").read_bytes() == b"whole"


def test_a_bundle_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    out, aside, half = (tmp_path / n for n in ("b", ".b.previous", ".b.7.partial"))
    aside.mkdir()
    half.mkdir()
    (aside / MANIFEST).write_text("old")
    with pytest.raises(BundleError, match="add --overwrite"), bundle_folder(out):
        pass
    assert (out / MANIFEST).read_text() == "old"
    assert names(tmp_path) == ["b"]
    with bundle_folder(out, overwrite=True) as folder:
        (folder / MANIFEST).write_text("new")
    assert (out / MANIFEST).read_text() == "new"
    assert names(tmp_path) == ["b"]


def test_a_bundle_that_another_process_makes_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with bundle_folder(out) as folder:
        (folder / MANIFEST).write_text("first")
        with pytest.raises(BundleError, match="another command is making it"), bundle_folder(out):
            pass
    assert (out / MANIFEST).read_text() == "first"


@pytest.mark.parametrize(
    ("files", "in_the_way"),
    [
        ([".lock", "metrics.jsonl"], False),
        ([".lock", ".metrics.jsonl.7.partial", ".saving/config.json"], False),
        ([".lock", "metrics.jsonl", "mine.txt"], True),
        ([".lock", "training.json"], True),
        (["metrics.jsonl"], True),
        ([".lock", "metrics.jsonl", ".DS_Store"], False),
    ],
)
def test_a_run_that_was_killed_before_its_first_save_is_not_in_the_way(
    tmp_path: Path, files: list[str], in_the_way: bool
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert killed_unsaved(tmp_path) is not in_the_way
