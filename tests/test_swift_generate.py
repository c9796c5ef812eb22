"""`mdm-generate` on this machine: real pictures from a real bundle, by `mdm serve-bundle`.

Every run starts a server, which costs seconds: the emoji model and every step in turn are slow
tests. What happens between any two packages is held by the tests of the Swift package itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from swift_tools import build

from conversion.bundle import Bundle
from conversion.convert import convert
from conversion.runtime import BundleRuntime
from conversion.source import load_source
from mdm_apple.embedded import EMOJI
from mdm_apple.generate import Prompt, finish, generate
from mdm_apple.sampling import SamplerConfig
from mdm_apple.tensorfile import read_tensors

MDM = "import sys; from mdm_apple.cli import main; sys.argv[0] = 'mdm'; main()"


@pytest.fixture(scope="session")
def nested(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("swift") / "tiny.bundle"
    return convert(load_source(model_folder), out)


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("swift") / "emoji.bundle"
    return convert(load_source(EMOJI), out)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """mdm-generate with a server of this checkout."""
    server = tmp_path_factory.mktemp("server") / "mdm"
    server.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{MDM}" "$@"\n', encoding="utf-8")
    server.chmod(0o755)
    return [str(build("mdm-generate")), "--server", str(server)]


def run(program: list[str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [*program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def made(program: list[str], bundle: Bundle, folder: Path, *words: object) -> dict[str, np.ndarray]:
    raw = folder / f"{random.randrange(10**9)}.safetensors"
    done = run(program, bundle.path, "--prompt", "red heart", "--raw", raw, *words)
    assert done.returncode == 0, done.stderr
    return {name: np.array(value) for name, value in read_tensors(raw).items()}


def psnr(
    ours: dict[str, np.ndarray],
    bundle: Bundle,
    sampler: SamplerConfig,
    seed: int,
    stop_at: int | None = None,
) -> float:
    """Of the worst level, before rounding to 8 bits, peak 2."""
    prompts = [Prompt("red heart", seed)]
    theirs = finish(generate(BundleRuntime(bundle), prompts, sampler, stop_at))
    assert {f"picture_{x.shape[-1]}" for x in theirs} == set(ours)
    errors = [np.mean((ours[f"picture_{x.shape[-1]}"] - x.astype(np.float64)) ** 2) for x in theirs]
    return float(20 * np.log10(2 / max(1e-10, np.sqrt(max(errors)))))


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


def cancel_after(program: list[str], bundle: Bundle, folder: Path, step: int, number: int) -> None:
    out = folder / "cancelled.png"
    words = [*program, str(bundle.path), "--prompt", "x", "--steps", "500", "--out", str(out)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"step {step} "):
            break
    children = descendants(process.pid)
    assert children, "a server runs"
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{c}").exists() for c in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{c}").exists() for c in children), "the server outlived the client"
    assert list(folder.iterdir()) == []
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "cancelled" in said


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_cancelling_leaves_no_process_and_no_file(
    program: list[str], nested: Bundle, tmp_path: Path, number: int
) -> None:
    cancel_after(program, nested, tmp_path, random.choice([1, 2, 3]), number)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_cancelling_after_every_step_leaves_nothing(
    program: list[str], nested: Bundle, tmp_path: Path, step: int
) -> None:
    cancel_after(program, nested, tmp_path, step, signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--steps", "0"], "expected 1 to"),
        (["--stop-at", "7"], "this model has sides"),
        (["--sampler", "euler"], "is none of"),
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


def test_the_bench_reports_every_step(program: list[str], nested: Bundle) -> None:
    words = ["--prompt", "x", "--steps", 2, "--repetitions", 2, "--json"]
    done = subprocess.run(
        [program[0], "bench", str(nested.path), *program[1:], *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    report = json.loads(done.stdout)
    assert len(report["stepSeconds"]) == 4
    assert len(report["warmPictureSeconds"]) == 2
    assert report["bundle"] == nested.manifest.digest
    assert all(seconds > 0 for seconds in report["stepSeconds"])
