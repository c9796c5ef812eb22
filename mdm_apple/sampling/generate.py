"""From prompts and seeds to pictures, on any backend.

Input: a `Runtime` (torch, MLX, or a bundle behind the executor). Output: steps whose images are
NumPy arrays in [-1, 1], and pictures as bytes per pixel.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mdm_apple.config.model import DiffusionConfig, ModelConfig
from mdm_apple.config.types import Images
from mdm_apple.diffusion.noise import MAX_SEED, NoiseStream, draw_batch
from mdm_apple.diffusion.ops import Ops
from mdm_apple.diffusion.prediction import image_scale, x0_of
from mdm_apple.diffusion.schedule import Schedule, check_steps
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.sampling.given_frames import (
    NOTHING_GIVEN,
    GivenFrames,
    check_given,
    given_at_levels,
)
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.walk import (
    Denoise,
    Held,
    JumpTo,
    SamplerConfig,
    Step,
    check_student,
    sample,
    sample_student,
    student_grid,
)
from mdm_apple.text.captions import check_text


@dataclass(frozen=True)
class Prompt:
    """One picture to make. An empty negative prompt means the unconditional one."""

    text: str
    seed: int
    negative: str = ""


def random_seed(count: int = 1) -> int:
    """A seed for callers who gave none, with room for `count` consecutive ones."""
    return secrets.randbelow(MAX_SEED + 2 - count)


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

    @property
    def schedule(self) -> Schedule:
        """The schedule of all levels; a bundle brings its tables as numbers."""
        ...

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        """The network with text, time and guidance applied, for levels from first_level on."""
        ...

    def image(self, x: Images) -> Any:
        """Convert a (B, 3, H, W) array to a backend image."""
        ...

    def numpy(self, x: Any) -> Images:
        """The inverse of `image`."""
        ...


@runtime_checkable
class StudentRuntime(Protocol):
    """A runtime that can run distilled models."""

    def jumper(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> JumpTo:
        """The student with text and guidance applied, for levels from first_level on."""
        ...


def generate(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig,
    stop_at: int | None = None,
    given: GivenFrames = NOTHING_GIVEN,
) -> Iterator[Preview]:
    """Make one picture per prompt, as one batch; yields after every network evaluation.

    The same prompt, seed and settings give the same picture in any batch.

    Args:
        stop_at: side of the highest level to run; the levels above are not computed.
        given: frames that every clip is to have; each is equal to its picture in the end.
    """
    check_request(runtime.config, prompts, sampler, stop_at)
    check_given(runtime.config, given, stop_at)
    setting = _setting(runtime, prompts, stop_at, given)
    if sampler.kind == "student":
        steps = _student_steps(runtime, prompts, sampler, setting)
    else:
        steps = sample(
            runtime.denoiser(prompts, sampler.guidance_scale, setting.first),
            setting.draw(),
            setting.draw,
            setting.schedule,
            setting.diffusion,
            sampler,
            setting.scales,
            runtime.ops,
            setting.held,
        )
    for step in steps:
        last = step.index == step.total - 1
        final = setting.shown(step.x_next) if last else None
        yield Preview(step.index, step.total, setting.shown(step.x0), final)


def check_request(
    config: ModelConfig, prompts: Sequence[Prompt], sampler: SamplerConfig, stop_at: int | None
) -> None:
    """Refuse a request that the model's configuration rules out. Raises ConfigError."""
    check_student(config.distilled, sampler)
    if config.distilled is None:
        check_steps(sampler.num_steps, config.diffusion.schedule.num_steps)
    level_of_side(config, stop_at)
    for prompt in prompts:
        check_text("prompt", prompt.text)
        check_text("negative", prompt.negative)
    if config.distilled is not None and any(prompt.negative for prompt in prompts):
        raise ConfigError("negative: a student takes no negative prompt; leave it out.")


def clean_estimate(
    runtime: Runtime, prompts: Sequence[Prompt], stop_at: int | None = None
) -> list[Images]:
    """The clean estimate from noise and caption alone: one evaluation at the noisiest t.

    It uses no guidance, or the smallest weight that a student learned.
    """
    setting = _setting(runtime, prompts, stop_at)
    t, x_t = setting.schedule.num_steps, setting.draw()
    if distilled := runtime.config.distilled:  # a student's answer at its start is that estimate
        weight = distilled.guidance[0] if distilled.guidance else 1.0
        predictions = _jumps(runtime).jumper(prompts, weight, setting.first)(x_t, t - 1, t)
    else:
        predictions = runtime.denoiser(prompts, 1.0, setting.first)(x_t, t - 1)
    kind = setting.diffusion.prediction
    return setting.shown(
        [
            x0_of(p, x, float(table[t]), kind)
            for p, x, table in zip(predictions, x_t, setting.schedule.tables, strict=True)
        ]
    )


def _student_steps(
    runtime: Runtime, prompts: Sequence[Prompt], sampler: SamplerConfig, setting: _Setting
) -> Iterator[Step]:
    distilled = runtime.config.distilled
    assert distilled is not None, "check_student passed"
    return sample_student(
        _jumps(runtime).jumper(prompts, sampler.guidance_scale, setting.first),
        setting.draw(),
        setting.schedule,
        setting.diffusion,
        student_grid(distilled, sampler.num_steps),
        setting.held,
    )


def _jumps(runtime: Runtime) -> StudentRuntime:
    if not isinstance(runtime, StudentRuntime):
        raise MdmError("backend: this one cannot run distilled models; use torch.")
    return runtime


@dataclass(frozen=True)
class _Setting:
    """The levels that run, highest first, the noise of some prompts at them, and given frames."""

    runtime: Runtime
    first: int
    scales: tuple[int, ...]
    schedule: Schedule
    diffusion: DiffusionConfig
    streams: list[NoiseStream]
    given: GivenFrames

    @property
    def held(self) -> list[Held]:
        if not self.given:
            return []
        levels = given_at_levels(self.runtime.config, self.given, self.first)
        image, signal = self.runtime.image, self.signal
        return [
            Held(image(free), image(known / np.float32(q)))
            for (free, known), q in zip(levels, signal, strict=True)
        ]

    @property
    def signal(self) -> list[float]:
        """What every level's image was divided by; see `image_scale`."""
        return [image_scale(self.diffusion, self.scales, i) for i in range(len(self.scales))]

    def draw(self) -> list[Any]:
        return [self.runtime.image(level) for level in draw_batch(self.streams)]

    def shown(self, images: Sequence[Any]) -> list[Images]:
        """Convert backend images to pictures."""
        return [
            np.clip(self.runtime.numpy(x) * q, -1, 1)
            for x, q in zip(images, self.signal, strict=True)
        ]


def _setting(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    stop_at: int | None,
    given: GivenFrames = NOTHING_GIVEN,
) -> _Setting:
    config = runtime.config
    first = level_of_side(config, stop_at)
    full = runtime.schedule
    diffusion = config.diffusion
    if len(config.sides) > 1:  # only a plain model rescales; an inner level run alone is not plain
        diffusion = dataclasses.replace(diffusion, rescale_signal=None)
    return _Setting(
        runtime,
        first,
        config.model.scales[first:],
        Schedule(full.base, full.tables[first:]),
        diffusion,
        [NoiseStream(p.seed, config.sides[first:]) for p in prompts],
        given,
    )


def finish(previews: Iterator[Preview]) -> list[Images]:
    """Run to the end and return the pictures of every level, highest first."""
    final = None
    for preview in previews:
        final = preview.final
    assert final is not None, "the last preview carries the result"
    return final
