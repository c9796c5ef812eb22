"""Distilled models and functions that stop early, by `mdm-generate`: the pictures of Python."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from swift_pictures import made, psnr, run

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.sampling.walk import SamplerConfig

pytest_plugins = ["bundles", "swift_bundles"]


def jump(steps: int, weight: float) -> SamplerConfig:
    return SamplerConfig("student", steps, guidance_scale=weight)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_makes_the_picture_of_the_reference(
    program: list[str], student: Bundle, tmp_path: Path, steps: int
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    weight = random.choice([1.0, 1.25, 2.75, 4.0])
    stop = student.sides[-1] if steps == 2 else None
    words = ["--sampler", "student", "--steps", steps, "--seed", seed, "--guidance", weight]
    words += ["--stop-at", stop] if stop else []
    ours = made(program, student, tmp_path, *words)
    assert psnr(ours, student, jump(steps, weight), seed, stop) >= 60
    # the twins: another row of the weights, and another way there
    assert psnr(ours, student, jump(steps, 2.0), seed, stop) < 60
    assert psnr(ours, student, jump(4 if steps < 4 else 1, weight), seed, stop) < 60


def test_an_interrupted_student_goes_on_to_the_same_picture(
    program: list[str], student: Bundle, tmp_path: Path
) -> None:
    words = ["--sampler", "student", "--steps", 4, "--guidance", 2, "--seed", 5]
    whole = made(program, student, tmp_path, *words)
    snapshot = tmp_path / "snapshot"
    stop = ["--snapshot", snapshot, "--snapshot-after", 2, "--raw", tmp_path / "never"]
    done = run(program, student.path, "--prompt", "red heart", *words, *stop)
    assert done.returncode == 0, done.stderr
    resumed = made(program, student, tmp_path, "--resume", snapshot)
    assert all((whole[name] == resumed[name]).all() for name in whole)


REFUSED = [
    ([], "this model is a student"),
    (["--sampler", "student"], "this student takes 1, 2, 4, got 50"),
    (["--sampler", "student", "--steps", "3"], "this student takes 1, 2, 4, got 3"),
    (["--sampler", "student", "--full-table"], "got the whole table"),
    (["--sampler", "student", "--steps", "1", "--guidance", "1.1"], "this student takes 1.0, 1.25"),
    (["--sampler", "student", "--steps", "1", "--negative", "x"], "takes no negative prompt"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED)
def test_what_a_student_did_not_learn_is_refused(
    program: list[str], student: Bundle, tmp_path: Path, words: list[str], reason: str
) -> None:
    done = run(program, student.path, "--prompt", "x", "--quiet", "--out", tmp_path / "x", *words)
    assert done.returncode == 1
    assert reason in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_other_model_jumps(program: list[str], nested: Bundle, tmp_path: Path) -> None:
    words = ["--sampler", "student", "--steps", "1", "--out", tmp_path / "x"]
    done = run(program, nested.path, "--prompt", "x", *words)
    assert done.returncode == 1
    assert "goes with a distilled model" in done.stderr


@pytest.mark.parametrize("stop", [False, True])
def test_a_function_makes_the_picture_of_the_reference(
    program: list[str], functions: Bundle, tmp_path: Path, stop: bool
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    side = functions.sides[-1] if stop else None
    words = ["--steps", 3, "--guidance", 2, "--seed", seed]
    words += ["--stop-at", side] if side else []
    ours = made(program, functions, tmp_path, *words, "--memory", "resident" if stop else "minimal")
    sampler = SamplerConfig("ddim", 3, guidance_scale=2.0)
    assert psnr(ours, functions, sampler, seed, side) >= 60
    if side:  # a level of the whole nest is another picture than the level alone
        whole = made(program, functions, tmp_path, *words[:-2])
        alone = {name: whole[name] for name in ours}
        assert psnr(alone, functions, sampler, seed, side) < 60
