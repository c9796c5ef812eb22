"""A fine-tune in MLX, from a model that was really trained: the samples of its average move."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from backends import Backend, MlxBackend, TorchBackend
from PIL import Image
from small import CAPTIONS, trainable_model

from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.training.run import run_job
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job

pytest.importorskip("mlx.core")

SIDE = 16
CONFIG = dataclasses.replace(trainable_model(), side=SIDE)
VISIBLE = 0.15  # mean difference of pixels in [-1, 1]: 19 of 255 steps


def colours(folder: Path, inverted: bool) -> Path:
    """A picture of one colour for each caption, or of the opposite colour."""
    folder.mkdir()
    values = np.random.RandomState(4).randint(0, 2, (len(CAPTIONS), 3)) * 191 + 32
    for number, (caption, colour) in enumerate(zip(CAPTIONS, values, strict=True)):
        pixels = np.broadcast_to(255 - colour if inverted else colour, (SIDE, SIDE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(caption, encoding="utf-8")
    return folder


def trained(backend: Backend, data: Path, out: Path, steps: int, init: Path | None = None) -> Path:
    train = TrainConfig(
        steps=steps, batch_size=16, lr=2e-3, warmup_steps=20, seed=1, save_every=steps
    )
    run_job(Job(CONFIG, train, str(data), out, init=init, quiet=True), backend.open_learner, print)
    return out


def samples(folder: Path) -> np.ndarray:
    """One per caption, of the averaged weights: (B, 3, side, side)."""
    prompts = [Prompt(caption, seed) for seed, caption in enumerate(CAPTIONS)]
    sampler = SamplerConfig("ddim", 20)
    return finish(generate(MlxBackend().runtime(folder), prompts, sampler))[0]


def pictures_in(folder: Path) -> np.ndarray:
    paths = sorted(folder.glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return pixels.transpose(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.slow
def test_a_fine_tune_of_200_steps_visibly_moves_the_samples_of_the_average(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = colours(tmp_path / "a", False), colours(tmp_path / "b", True)
    start = trained(TorchBackend(), first, tmp_path / "start", 600)
    tuned = trained(MlxBackend(), second, tmp_path / "tuned", 200, init=start)
    before, after = samples(start), samples(tuned)

    def apart(made: np.ndarray, data: Path) -> float:
        return float(np.abs(made - pictures_in(data)).mean())

    with capsys.disabled():
        print(
            f"\nmoved by {np.abs(after - before).mean():.2f} of 2; from the first pictures "
            f"{apart(before, first):.2f} before, {apart(after, first):.2f} after, from the second "
            f"{apart(before, second):.2f} before, {apart(after, second):.2f} after",
            end="",
        )
    np.testing.assert_array_equal(before, samples(start))
    assert apart(before, first) < 0.5 * apart(before, second)  # the start had learned
    assert np.abs(after - before).mean() > VISIBLE
    assert apart(after, second) < 0.5 * apart(before, second)
