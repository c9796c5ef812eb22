"""From prompts and seeds to pictures, on any backend.

Enters: a `Runtime` (torch, MLX, or a bundle behind the executor). Leaves: steps whose images are
NumPy arrays in [-1, 1], and pictures as bytes per pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config import ModelConfig
from mdm_apple.levels import level_of_side
from mdm_apple.loss import image_scale
from mdm_apple.noise import NoiseStream, draw_batch
from mdm_apple.ops import Ops
from mdm_apple.sampling import Denoise, SamplerConfig, sample
from mdm_apple.schedule import Schedule, build_schedule

Images = NDArray[np.float32]  # (B, 3, H, W) in [-1, 1]


@dataclass(frozen=True)
class Prompt:
    """One picture to make. The empty negative prompt is the unconditional one."""

    text: str
    seed: int
    negative: str = ""


@dataclass(frozen=True)
class Preview:
    """Pictures after one step, clipped to [-1, 1], highest level first."""

    index: int
    total: int
    x0: list[Images]  # clean estimate of every level
    final: list[Images] | None  # the result, with the last step


class Runtime(Protocol):
    """A loaded model on some backend."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def ops(self) -> Ops: ...

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        """The network with text, time and guidance applied, for levels from first_level on."""
        ...

    def image(self, x: Images) -> Any:
        """A backend image of a (B, 3, H, W) array."""
        ...

    def numpy(self, x: Any) -> Images:
        """The inverse of `image`."""
        ...


def generate(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig,
    stop_at: int | None = None,
) -> Iterator[Preview]:
    """Make one picture per prompt, as one batch; yields after every network evaluation.

    The same prompt, seed and settings give the same picture whatever the batch around them.

    Args:
        stop_at: side of the highest level to run; the levels above are not computed.
    """
    config = runtime.config
    first = level_of_side(config, stop_at)
    scales, sides = config.model.scales[first:], config.sides[first:]
    full = build_schedule(config.diffusion.schedule, config.model.scales)
    schedule = Schedule(full.base, full.tables[first:])
    streams = [NoiseStream(p.seed, sides) for p in prompts]

    def draw() -> list[Any]:
        return [runtime.image(level) for level in draw_batch(streams)]

    denoise = runtime.denoiser(prompts, sampler.guidance_scale, first)
    diffusion = config.diffusion
    if len(config.sides) > 1:  # only a plain model rescales; a level left alone is not one
        diffusion = dataclasses.replace(diffusion, rescale_signal=None)
    signal = [image_scale(diffusion, scales, i) for i in range(len(scales))]

    def shown(images: Sequence[Any]) -> list[Images]:
        return [np.clip(runtime.numpy(x) * q, -1, 1) for x, q in zip(images, signal, strict=True)]

    steps = sample(denoise, draw(), draw, schedule, diffusion, sampler, scales, runtime.ops)
    for step in steps:
        last = step.index == step.total - 1
        yield Preview(step.index, step.total, shown(step.x0), shown(step.x_next) if last else None)


def finish(previews: Iterator[Preview]) -> list[Images]:
    """Run to the end; the pictures of every level, highest first."""
    final = None
    for preview in previews:
        final = preview.final
    assert final is not None, "the last preview carries the result"
    return final
