"""One picture by a bundle alone: its recorded text, then every evaluation by its packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.bundle import Bundle
from conversion.chain import Denoiser, Jump, Values
from conversion.parts import TEXT_FEATURES, TEXT_MASK, TOKEN_IDS
from conversion.reference import SEED, TextInputs, walk_grid
from mdm_apple.config import ModelConfig
from mdm_apple.diffusion import guide
from mdm_apple.loss import image_scale
from mdm_apple.noise import NoiseStream, draw_batch
from mdm_apple.ops import NumpyOps
from mdm_apple.sampling import SamplerConfig, sample, sample_student, student_grid
from mdm_apple.schedule import build_schedule

GUIDANCE = 4.0

Floats = NDArray[np.float32]


def text_of(bundle: Bundle, text: TextInputs | None, p: int) -> dict[str, NDArray[Any]] | None:
    """Text of one prompt: tokens where the bundle encodes them itself, else features."""
    if text is None:
        return None
    mask = {TEXT_MASK: text.mask[p : p + 1]}
    info = bundle.manifest.text
    if info and info.encoder and text.ids is not None:
        return mask | {TOKEN_IDS: text.ids[p : p + 1]}
    return mask | {TEXT_FEATURES: text.features[p : p + 1]}


def walk_steps(config: ModelConfig) -> int:
    """Evaluations of the trajectory that golden records hold."""
    return len(walk_grid(config)) - 1


def trajectory(
    denoiser: Denoiser,
    config: ModelConfig,
    conditioning: Values,
    steps: int,
    null: Values | None = None,
    seen: Callable[[], None] = lambda: None,
) -> list[Floats]:
    """Pictures per level, (1, 3, side, side), of a deterministic trajectory with a fixed seed.

    Args:
        null: conditioning of the empty prompt, for guidance by two evaluations per step.
        seen: is called after every step. Raises ConfigError for steps that a student cannot take.
    """
    schedule = build_schedule(config.diffusion.schedule, config.model.scales)
    stream = NoiseStream(SEED, config.sides)
    if config.distilled is not None:
        found = sample_student(
            lambda x_t, time, to: denoiser.predict(x_t, time, conditioning, jump=Jump(to)),
            draw_batch([stream]),
            schedule,
            config.diffusion,
            student_grid(config.distilled, steps),
        )
    else:

        def denoise(x_t: list[Floats], time: int) -> list[Floats]:
            given = denoiser.predict(x_t, time, conditioning)
            if null is None:
                return given
            without = denoiser.predict(x_t, time, null)
            return [guide(c, u, GUIDANCE) for c, u in zip(given, without, strict=True)]

        found = sample(
            denoise,
            draw_batch([stream]),
            lambda: draw_batch([stream]),
            schedule,
            config.diffusion,
            SamplerConfig("ddim", steps),
            config.model.scales,
            NumpyOps(),
        )
    last: list[Floats] = []
    for step in found:
        last = step.x_next
        seen()
    signal = [image_scale(config.diffusion, config.model.scales, i) for i in range(len(last))]
    return [x * np.float32(q) for x, q in zip(last, signal, strict=True)]
