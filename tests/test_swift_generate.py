"""`mdm-generate` on this machine: real pictures from a real bundle, by `mdm serve-bundle`.

Every run starts a server, which costs seconds: the emoji model and every step in turn are slow
tests. What happens between any two packages is held by the tests of the Swift package itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from swift_pictures import made, psnr, run

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import package_bytes
from mdm_apple.conversion.device.doctor import advise
from mdm_apple.conversion.device.results import read_results
from mdm_apple.conversion.run.runtime import BundleRuntime
from mdm_apple.sampling.generate import Prompt, generate
from mdm_apple.sampling.walk import SamplerConfig

pytest_plugins = ["bundles", "swift_bundles"]


@pytest.mark.parametrize(
    ("kind", "steps", "guidance", "stop"),
    [("ddim", 4, 1.0, False), ("ddpm", 3, 3.0, False), ("dpmpp", 5, 2.0, True)],
)
def test_the_picture_is_that_of_the_reference(
    program: list[str],
    nested: Bundle,
    tmp_path: Path,
    kind: str,
    steps: int,
    guidance: float,
    stop: bool,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    side = nested.sides[-1] if stop else None
    words = ["--seed", seed, "--steps", steps, "--sampler", kind, "--guidance", guidance]
    words += ["--stop-at", side] if side else []
    ours = made(program, nested, tmp_path, *words, "--memory", "minimal" if stop else "staged")
    sampler = SamplerConfig(kind=kind, num_steps=steps, guidance_scale=guidance)  # pyright: ignore
    assert psnr(ours, nested, sampler, seed, side) >= 60
    other = SamplerConfig(kind=kind, num_steps=steps, guidance_scale=guidance + 0.5)  # pyright: ignore
    assert psnr(ours, nested, other, seed, side) < 60


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_the_emoji_model_gives_the_picture_of_the_reference(
    program: list[str], emoji: Bundle, tmp_path: Path, steps: int
) -> None:
    ours = made(program, emoji, tmp_path, "--seed", 7, "--steps", steps, "--guidance", 3)
    sampler = SamplerConfig(num_steps=steps, guidance_scale=3)
    assert psnr(ours, emoji, sampler, 7) >= 60


def interrupted_after(
    program: list[str], bundle: Bundle, folder: Path, step: int, words: list[object]
) -> dict[str, np.ndarray]:
    """The picture of a run that stopped after so many steps and went on in another process."""
    snapshot = folder / f"snapshot-{step}"
    stop = ["--snapshot", snapshot, "--snapshot-after", step, "--raw", folder / "never"]
    done = run(program, bundle.path, "--prompt", "red heart", *words, *stop)
    assert done.returncode == 0, done.stderr
    assert not (folder / "never").exists()
    return made(program, bundle, folder, "--resume", snapshot)


def test_an_interrupted_run_goes_on_to_the_same_picture(
    program: list[str], nested: Bundle, tmp_path: Path
) -> None:
    words: list[object] = ["--seed", 3, "--steps", 3, "--sampler", "ddpm"]
    whole = made(program, nested, tmp_path, *words)
    resumed = interrupted_after(program, nested, tmp_path, 2, words)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddim", "ddpm", "dpmpp"])
def test_an_interrupted_run_goes_on_from_every_step(
    program: list[str], nested: Bundle, tmp_path: Path, kind: str
) -> None:
    words: list[object] = ["--seed", 3, "--steps", 4, "--sampler", kind]
    whole = made(program, nested, tmp_path, *words)
    for step in (1, 2, 3):
        resumed = interrupted_after(program, nested, tmp_path, step, words)
        assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def descendants(pid: int) -> list[int]:
    """Processes below this one, from /proc."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[1]) == pid:
            child = int(stat.parent.name)
            found += [child, *descendants(child)]
    return found


def started(
    program: list[str], bundle: Bundle, folder: Path, step: int, *words: object
) -> tuple[subprocess.Popen[str], list[int]]:
    """A run of 500 steps, unless told otherwise, that has taken the first ones; what it started."""
    asked = ["--prompt", "red heart", "--steps", "500", "--out", folder / "never.png", *words]
    process = subprocess.Popen(
        [*program, *map(str, (bundle.path, *asked))],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"step {step} "):
            break
    children = descendants(process.pid)
    assert children, "a server runs"
    return process, children


def assert_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{p}").exists() for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{p}").exists() for p in processes), "the server outlived the client"


def cancel_after(
    program: list[str], bundle: Bundle, folder: Path, step: int, number: int, hangs: bool = False
) -> None:
    process, children = started(program, bundle, folder, step)
    if hangs:
        for child in children:
            os.kill(child, signal.SIGSTOP)
        time.sleep(0.3)  # until the client waits for it
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert_gone(children)
    assert list(folder.iterdir()) == []
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "cancelled" in said


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
WAYS = [(signal.SIGINT, False), (signal.SIGKILL, False), (signal.SIGTERM, True)]


@needs_proc
@pytest.mark.parametrize(("number", "hangs"), WAYS)
def test_cancelling_leaves_no_process_and_no_file(
    program: list[str], nested: Bundle, tmp_path: Path, number: int, hangs: bool
) -> None:
    cancel_after(program, nested, tmp_path, random.choice([1, 2, 3]), number, hangs)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize(("number", "hangs"), [(signal.SIGTERM, False), *WAYS[1:]])
def test_cancelling_after_every_step_leaves_nothing(
    program: list[str], nested: Bundle, tmp_path: Path, step: int, number: int, hangs: bool
) -> None:
    cancel_after(program, nested, tmp_path, step, number, hangs)


@needs_proc
def test_a_server_that_is_killed_leaves_a_snapshot_and_no_picture(
    program: list[str], nested: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    snapshot = folder / "snapshot"
    words = ["--seed", 3, "--steps", 20, "--snapshot", snapshot]
    process, children = started(program, nested, folder, 2, *words)
    for child in children:
        os.kill(child, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("mdm-generate: ")]
    assert "bundle server" in line
    assert "resume from the snapshot" in line
    assert [path.name for path in folder.iterdir()] == ["snapshot"]
    assert_gone(children)
    resumed = made(program, nested, tmp_path, "--resume", snapshot)
    whole = made(program, nested, tmp_path, "--seed", 3, "--steps", 20)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def previews_like_the_reference(
    program: list[str], bundle: Bundle, folder: Path, steps: int
) -> None:
    """Every level at every step, as PNG: one grey level from the clean estimates of Python."""
    words = ["--seed", 7, "--steps", steps, "--guidance", 2, "--previews", folder / "previews"]
    made(program, bundle, folder, *words)
    sampler = SamplerConfig(num_steps=steps, guidance_scale=2)
    found = {path.name for path in (folder / "previews").iterdir()}
    assert found == {f"{side}_{step}.png" for side in bundle.sides for step in range(steps)}
    for preview in generate(BundleRuntime(bundle), [Prompt("red heart", 7)], sampler):
        for x0 in preview.x0:
            name = f"{x0.shape[-1]}_{preview.index}.png"
            with Image.open(folder / "previews" / name) as image:
                pixels = np.asarray(image.convert("RGB"), np.float64)
            expected = (x0[0].transpose(1, 2, 0) + 1) * 127.5
            assert np.abs(pixels - expected).max() <= 1, name


def test_previews_are_the_clean_estimates_of_the_reference(
    program: list[str], nested: Bundle, tmp_path: Path
) -> None:
    previews_like_the_reference(program, nested, tmp_path, 3)


@pytest.mark.slow
def test_previews_of_the_emoji_model(program: list[str], emoji: Bundle, tmp_path: Path) -> None:
    previews_like_the_reference(program, emoji, tmp_path, 4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--steps", "0"], "expected 1 to"),
        (["--stop-at", "7"], "this model has sides"),
        (["--sampler", "euler"], "expected one of"),
        (["--eta", "2"], "expected 0 to 1"),
        (["--frob", "1"], "is unknown"),
        (["--server", "/no/such/mdm"], "it has ended"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    program: list[str], nested: Bundle, tmp_path: Path, words: list[str], reason: str
) -> None:
    done = run(program, nested.path, "--prompt", "x", "--quiet", "--out", tmp_path / "x", *words)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("mdm-generate: ")]
    assert reason in line
    assert not (tmp_path / "x").exists()


def test_the_bench_reports_every_step(program: list[str], nested: Bundle, tmp_path: Path) -> None:
    words = ["--prompt", "x", "--steps", 1, "--repetitions", 2, "--json"]
    done = subprocess.run(
        [program[0], "bench", str(nested.path), *program[1:], *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (tmp_path / "r.jsonl").write_text(done.stdout)
    (record,) = read_results(tmp_path / "r.jsonl")  # holds it to the schema
    assert (record["digest"], record["units"]) == (nested.manifest.digest, "executor")
    assert (record["steps"], record["layout"]) == ([1], "nested")
    assert record["bytes"] == package_bytes(nested.manifest.packages)
    (pictures,) = record["pictures"]
    assert len(pictures["seconds"]) == 2
    names = [package.name for package in nested.manifest.packages]
    calls = {latency["what"]: latency["seconds"] for latency in record["latencies"]}
    assert list(calls) == ["step", *(f"package {name}" for name in names)]
    assert all(len(calls[f"package {name}"]) >= 2 for name in names)
    assert all(second > 0 for seconds in calls.values() for second in seconds)
    assert [load["package"] for load in record["loads"]] == names
    for load in record["loads"]:
        assert load["cold"] == (load["first_s"] > 1.5 * load["second_s"])
    assert advise([record]).harness_only
