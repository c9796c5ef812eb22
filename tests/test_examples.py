"""The examples run, and what they show is right."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from mdm_apple.diffusion.schedule import build_schedule

EXAMPLES = Path(__file__).parents[1] / "examples"
CLOSE = 0.08  # of means and relative variances, with 3,000 points


def started(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={"PYTHONPATH": str(EXAMPLES.parent), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def run(*arguments: str | Path) -> str:
    done = started(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


WITHOUT_A_FRAMEWORK = """
import runpy, sys
sys.modules |= {"torch": None, "mlx": None}  # importing either raises ModuleNotFoundError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.bundle
def test_the_toy_draws_both_levels_without_a_framework(tmp_path: Path) -> None:
    said = run("-c", WITHOUT_A_FRAMEWORK, EXAMPLES / "toy_2d.py", "--out", tmp_path / "toy.png")
    numbers = [float(n) for n in re.findall(r"\d\.\d+", said)]
    assert len(numbers) == 4
    assert max(numbers) < CLOSE
    with Image.open(tmp_path / "toy.png") as picture:
        assert picture.size == (480, 600)
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) == 4


@pytest.mark.bundle
def test_an_example_that_needs_a_framework_does_not_run_without_one(tmp_path: Path) -> None:
    done = started("-c", WITHOUT_A_FRAMEWORK, EXAMPLES / "train_tiny.py", "--out", tmp_path)
    assert "torch" in done.stderr.splitlines()[-1]
    assert done.returncode != 0


def worst(toy: ModuleType) -> float:
    """How far the samples' means and variances are from the data's, over both levels."""
    large, small = toy.walk_to_data(
        build_schedule(toy.DIFFUSION.schedule, toy.SCALES), count=3000, steps=40, seed=0
    )
    variance = toy.WIDTH**2 + toy.CENTRES.var(axis=0)
    pooled = toy.WIDTH**2 / 2 + toy.pool(toy.CENTRES).var()
    return max(
        np.abs(large.mean(axis=0) - toy.CENTRES.mean(axis=0)).max(),
        np.abs(large.var(axis=0) / variance - 1).max(),
        abs(small.var() / pooled - 1),
    )


def test_the_toy_meets_its_data() -> None:
    assert worst(module("toy_2d")) < CLOSE


def test_the_toy_with_a_denoiser_that_is_a_tenth_off_does_not() -> None:
    toy = module("toy_2d")
    right = toy.posterior_mean
    toy.posterior_mean = lambda *seen: 1.1 * right(*seen)
    assert worst(toy) > CLOSE


@pytest.mark.bundle
def test_the_samples_are_saved(tmp_path: Path) -> None:
    said = run(EXAMPLES / "sample.py", "--out", tmp_path)
    assert "levels: [64, 32, 16]" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert {"heart.png", "cat_1.png", "cat_2.png", "cat_3.png", "step_0.png", "step_3.png"} == {
        *names
    } - {"step_1.png", "step_2.png"}


@pytest.mark.bundle
def test_the_tiny_loop_learns(tmp_path: Path) -> None:
    said = run(EXAMPLES / "train_tiny.py", "--out", tmp_path, "--steps", "12", "--batch-size", "8")
    losses = [float(n) for n in re.findall(r"loss (\d\.\d+)", said)]
    assert losses[-1] < 0.9 * losses[0]
    assert (tmp_path / "levels.png").is_file()
