"""Pictures in are the same on every backend: torch, MLX, and a bundle on the executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import MlxBackend, TorchBackend
from small import random_state, save_random_model
from tolerances import PICTURE_IN, PICTURE_IN_BUNDLE

from mdm_apple.config.presets import preset
from mdm_apple.config.types import Pixels
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.psnr import picture_psnr
from mdm_apple.conversion.run.runtime import BundleRuntime
from mdm_apple.sampling.generate import Given, Prompt, finish, generate
from mdm_apple.sampling.given_frames import NOTHING_GIVEN
from mdm_apple.sampling.given_picture import GivenPicture
from mdm_apple.sampling.walk import SamplerConfig

pytest_plugins = ["bundles"]

HEART = Prompt("red heart", 7)
SAMPLER = SamplerConfig("ddim", 3, eta=0.5, threshold="clip")


def noise(side: int, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)


def corner() -> np.ndarray:
    free = np.zeros((16, 16), bool)
    free[5:, 3:] = True
    return free


GIVEN: dict[str, tuple[Prompt, Given]] = {
    "strength": (HEART, GivenPicture(noise(16), strength=0.7)),
    "mask": (HEART, GivenPicture(noise(16), corner(), harmonize=1)),
    "upscale": (HEART, GivenPicture(noise(8))),
    "between": (Prompt("red heart", 7, "", 8, "blue heart", 0.4), NOTHING_GIVEN),
}


def made(runtime: Any, kind: str) -> list[np.ndarray]:
    prompt, given = GIVEN[kind]
    return finish(generate(runtime, [prompt], SAMPLER, None, given))


def worst(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return min(picture_psnr(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with one weight that is far off."""
    config = preset("tiny")
    weights = random_state(config.model)
    name = max(weights, key=lambda n: weights[n].size)
    weights[name].flat[0] += 30 * float(np.abs(weights[name]).max())
    return save_random_model(tmp_path_factory.mktemp("twin") / "tiny", config, weights)


@pytest.mark.parametrize("kind", GIVEN)
def test_torch_and_mlx_make_the_same_picture(
    kind: str, model_folder: Path, twin_folder: Path
) -> None:
    by_torch = made(TorchBackend().runtime(model_folder), kind)
    assert worst(by_torch, made(MlxBackend().runtime(model_folder), kind)) >= PICTURE_IN
    assert worst(by_torch, made(MlxBackend().runtime(twin_folder), kind)) < PICTURE_IN


@pytest.mark.bundle
@pytest.mark.parametrize("kind", GIVEN)
def test_a_bundle_makes_the_same_picture(
    kind: str, nested: Bundle, model_folder: Path, twin_folder: Path
) -> None:
    by_bundle = made(BundleRuntime(nested, "fp32"), kind)
    assert worst(made(TorchBackend().runtime(model_folder), kind), by_bundle) >= PICTURE_IN_BUNDLE
    assert worst(made(TorchBackend().runtime(twin_folder), kind), by_bundle) < PICTURE_IN_BUNDLE
