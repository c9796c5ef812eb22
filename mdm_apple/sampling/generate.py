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
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Images
from mdm_apple.diffusion.arithmetic import add_noise
from mdm_apple.diffusion.noise import MAX_SEED, MixedNoise, NoiseStream, draw_batch
from mdm_apple.diffusion.ops import Ops
from mdm_apple.diffusion.prediction import image_scale, x0_of
from mdm_apple.diffusion.schedule import Schedule, check_steps, timestep_grid
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.sampling.constraint import Known
from mdm_apple.sampling.given_frames import NOTHING_GIVEN, GivenFrames
from mdm_apple.sampling.given_picture import GivenPicture, repeated
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.walk import (
    Denoise,
    JumpTo,
    SamplerConfig,
    Step,
    check_student,
    first_start,
    first_step,
    repeated_steps,
    sample,
    sample_student,
    student_grid,
)
from mdm_apple.text.captions import check_text


@dataclass(frozen=True)
class Prompt:
    """One picture to make. An empty negative prompt means the unconditional one.

    to_seed, to_text: another noise and another text, towards which the picture lies by `share`, 0
    to 1; None: the same.
    """

    text: str
    seed: int
    negative: str = ""
    to_seed: int | None = None
    to_text: str | None = None
    share: float = 0.0

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the model reads for it."""
        return (self.text, self.negative, *(() if self.to_text is None else (self.to_text,)))


Given = GivenFrames | GivenPicture


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
    given: Given = NOTHING_GIVEN,
) -> Iterator[Preview]:
    """Make one picture per prompt, as one batch; yields after every network evaluation.

    The same prompt, seed and settings give the same picture in any batch.

    Args:
        stop_at: side of the highest level to run; the levels above are not computed.
        given: frames that every clip is to have, or a picture to start from or to keep a part of.
            A given picture at strength 0 is yielded as it is, without an evaluation.
    """
    check_request(runtime.config, prompts, sampler, stop_at)
    given.check(runtime.config, stop_at)
    begin = beginning_of(runtime.config, sampler, given)
    setting = _setting(runtime, prompts, stop_at)
    levels = given.levels(runtime.config, setting.first)
    initial = setting.draw()
    known = (
        [
            level.on(runtime.image, q, noise)
            for level, q, noise in zip(levels, setting.signal, initial, strict=True)
        ]
        if levels
        else list[Known]()
    )
    if isinstance(given, GivenPicture):
        pictures = given.beginning(runtime.config, setting.first)
        if pictures is not None:
            start = _grid(runtime, sampler, begin)[0]
            if start == 0:
                shown = [np.clip(x, -1, 1) for x in repeated(pictures, len(prompts))]
                yield Preview(0, 1, shown, shown)
                return
            initial = setting.noisy(pictures, initial, start)
    if sampler.kind == "student":
        steps = _student_steps(runtime, prompts, sampler, setting, initial, known, begin)
    else:
        steps = sample(
            _denoiser(runtime, prompts, sampler.guidance_scale, setting.first),
            initial,
            setting.draw,
            setting.schedule,
            setting.diffusion,
            sampler,
            setting.scales,
            runtime.ops,
            known,
            begin,
            given.harmonize if isinstance(given, GivenPicture) else 0,
        )
    for step in steps:
        last = step.index == step.total - 1
        final = setting.shown(step.x_next) if last else None
        if final is not None and levels:
            final = [level.finished(x) for level, x in zip(levels, final, strict=True)]
        yield Preview(step.index, step.total, setting.shown(step.x0), final)


def check_given(
    config: ModelConfig, sampler: SamplerConfig, stop_at: int | None, given: Given
) -> None:
    """Refuse frames or a picture that the model or its sampler cannot use. Raises ConfigError."""
    given.check(config, stop_at)
    beginning_of(config, sampler, given)


def beginning_of(config: ModelConfig, sampler: SamplerConfig, given: Given) -> int:
    """How many of the first steps a given picture leaves out. Raises ConfigError."""
    if not isinstance(given, GivenPicture):
        return 0
    length = config.diffusion.schedule.num_steps
    if config.distilled is None:
        return first_step(sampler.num_steps or length, given.strength)
    if given.harmonize:
        raise ConfigError(
            "harmonize: a student jumps over the steps that are repeated; use the model that it "
            "learned from."
        )
    return first_start(config.distilled, given.strength, length)


def evaluations(config: ModelConfig, sampler: SamplerConfig, given: Given = NOTHING_GIVEN) -> int:
    """How many steps `generate` yields."""
    begin = beginning_of(config, sampler, given)
    if config.distilled is not None:
        return max(1, len(student_grid(config.distilled, sampler.num_steps, begin)) - 1)
    steps = (sampler.num_steps or config.diffusion.schedule.num_steps) - begin
    rounds = given.harmonize if isinstance(given, GivenPicture) else 0
    return max(1, steps + rounds * repeated_steps(steps))


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
        if prompt.to_text is not None:
            check_text("prompt", prompt.to_text)
        in_range("share", prompt.share, 0, 1)
        in_range("seed", prompt.seed, 0, MAX_SEED)
        in_range("to-seed", prompt.to_seed, 0, MAX_SEED)
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
    runtime: Runtime,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig,
    setting: _Setting,
    initial: list[Any],
    known: Sequence[Known],
    begin: int,
) -> Iterator[Step]:
    return sample_student(
        _jumper(runtime, prompts, sampler.guidance_scale, setting.first),
        initial,
        setting.schedule,
        setting.diffusion,
        _grid(runtime, sampler, begin),
        runtime.ops,
        known,
    )


def _grid(runtime: Runtime, sampler: SamplerConfig, begin: int) -> list[int]:
    """The table indices that sampling visits, when so many of the first are left out."""
    distilled = runtime.config.distilled
    if distilled is not None:
        return student_grid(distilled, sampler.num_steps, begin)
    return timestep_grid(runtime.schedule, sampler.num_steps, sampler.spacing)[begin:]


def _denoiser(
    runtime: Runtime, prompts: Sequence[Prompt], guidance_scale: float, first: int
) -> Denoise:
    """The network for prompts, of which some may lie between two texts."""
    denoise = runtime.denoiser(prompts, guidance_scale, first)
    others = _other_ends(prompts)
    if others is None:
        return denoise
    other, near, far = runtime.denoiser(others, guidance_scale, first), *_shares(runtime, prompts)

    def between(x_t: list[Any], time: int) -> list[Any]:
        pairs = zip(denoise(x_t, time), other(x_t, time), strict=True)
        return [a * near + b * far for a, b in pairs]

    return between


def _jumper(
    runtime: Runtime, prompts: Sequence[Prompt], guidance_scale: float, first: int
) -> JumpTo:
    """The same for a student."""
    jump = _jumps(runtime).jumper(prompts, guidance_scale, first)
    others = _other_ends(prompts)
    if others is None:
        return jump
    other = _jumps(runtime).jumper(others, guidance_scale, first)
    near, far = _shares(runtime, prompts)

    def between(x_t: list[Any], time: int, target: int) -> list[Any]:
        pairs = zip(jump(x_t, time, target), other(x_t, time, target), strict=True)
        return [a * near + b * far for a, b in pairs]

    return between


def _other_ends(prompts: Sequence[Prompt]) -> list[Prompt] | None:
    """The prompts with the texts towards which they lie; None if there are none."""
    if all(p.to_text in (None, p.text) for p in prompts):
        return None
    return [Prompt(p.text if p.to_text is None else p.to_text, p.seed, p.negative) for p in prompts]


def _shares(runtime: Runtime, prompts: Sequence[Prompt]) -> tuple[Any, Any]:
    """Of the first text and of the other, one for each picture; both predictions are mixed so."""
    far = np.array([p.share for p in prompts], np.float32)[:, None, None, None]
    return runtime.image(1 - far), runtime.image(far)


def _jumps(runtime: Runtime) -> StudentRuntime:
    if not isinstance(runtime, StudentRuntime):
        raise MdmError("backend: this one cannot run distilled models; use torch.")
    return runtime


@dataclass(frozen=True)
class _Setting:
    """The levels that run, highest first, and the noise of some prompts at them."""

    runtime: Runtime
    first: int
    scales: tuple[int, ...]
    schedule: Schedule
    diffusion: DiffusionConfig
    streams: list[NoiseStream | MixedNoise]

    @property
    def signal(self) -> list[float]:
        """What every level's image was divided by; see `image_scale`."""
        return [image_scale(self.diffusion, self.scales, i) for i in range(len(self.scales))]

    def draw(self) -> list[Any]:
        return [self.runtime.image(level) for level in draw_batch(self.streams)]

    def noisy(self, pictures: Sequence[Images], noise: list[Any], t: int) -> list[Any]:
        """A picture (1, 3, side, side) at every level with the noise of table index t."""
        return [
            add_noise(self.runtime.image(x / np.float32(q)), eps, float(table[t]))
            for x, q, eps, table in zip(
                pictures, self.signal, noise, self.schedule.tables, strict=True
            )
        ]

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
        [_noise(p, config.sides[first:]) for p in prompts],
    )


def _noise(prompt: Prompt, sides: Sequence[int]) -> NoiseStream | MixedNoise:
    own = NoiseStream(prompt.seed, sides)
    if prompt.to_seed in (None, prompt.seed):
        return own
    return MixedNoise(own, NoiseStream(prompt.to_seed, sides), prompt.share)


def finish(previews: Iterator[Preview]) -> list[Images]:
    """Run to the end and return the pictures of every level, highest first."""
    final = None
    for preview in previews:
        final = preview.final
    assert final is not None, "the last preview carries the result"
    return final
