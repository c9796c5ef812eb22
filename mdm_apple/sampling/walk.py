"""The denoising loop, for any backend: a generator of steps.

The caller decides when to evaluate, show or stop, and provides the noise and the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mdm_apple.config.choices import one_of
from mdm_apple.config.model import DiffusionConfig, Distilled, Threshold
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Array
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.ops import Ops
from mdm_apple.diffusion.prediction import image_scale, x0_of
from mdm_apple.diffusion.schedule import Schedule, Spacing, timestep_grid
from mdm_apple.errors import ConfigError

SamplerKind = Literal["ddpm", "ddim", "dpmpp", "student"]
Denoise = Callable[[list[Array], int], Sequence[Array]]
# noisy images, the number that the network receives, and the table index to jump to
JumpTo = Callable[[list[Array], int, int], Sequence[Array]]

# dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487): quantile and bound of |x0|
DYNAMIC = {"dynamic": (0.995, 100.0), "dynamic_if": (0.95, 1.5)}


@dataclass(frozen=True)
class SamplerConfig:
    """How to get from noise to a picture."""

    kind: SamplerKind = "ddim"
    num_steps: int | None = 50  # network evaluations; None: the whole table
    eta: float = 0.0  # ddim only
    guidance_scale: float = 1.0
    threshold: Threshold | None = None  # None: the model's own
    spacing: Spacing = "even"

    def __post_init__(self) -> None:
        one_of("sampler", self.kind, SamplerKind)
        one_of("threshold", self.threshold, Threshold)
        one_of("spacing", self.spacing, Spacing)
        in_range("steps", self.num_steps, 1)
        in_range("eta", self.eta, 0, 1)
        in_range("guidance", self.guidance_scale, -100, 100)

    @property
    def draws_noise(self) -> bool:
        """Whether steps add noise; deterministic samplers need only the initial noise."""
        return self.kind == "ddpm" or (self.kind == "ddim" and self.eta > 0)


@dataclass(frozen=True)
class Held:
    """What is known of a level's clean image, in the units of its network.

    free: 1 where nothing is known, 0 elsewhere. known: 0 where nothing is known.
    """

    free: Array
    known: Array

    def put_into(self, x0: Array) -> Array:
        """The clean estimate, with what is known in place of what was estimated."""
        return x0 * self.free + self.known


@dataclass(frozen=True)
class Step:
    """One evaluation of the network. Lists run over levels, highest first."""

    index: int
    total: int
    t: int  # table index of x_t
    t_next: int  # table index of x_next
    x_t: list[Array]
    prediction: list[Array]
    x0: list[Array]  # clean estimate after thresholding, with what is known in it
    x_next: list[Array]


def sample(
    denoise: Denoise,
    initial: Sequence[Array],
    draw: Callable[[], Sequence[Array]],
    schedule: Schedule,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    scales: Sequence[int],
    ops: Ops,
    held: Sequence[Held] = (),
) -> Iterator[Step]:
    """Trajectory from `initial` noise to a picture, one network evaluation per yielded step.

    Args:
        denoise: maps noisy images and the number the network receives (table index - 1) to
            predictions with guidance applied.
        initial: standard normals per level. draw: returns the next normals, called once per step
            if the sampler adds noise.
        schedule: has one table per level of `initial`. scales: as in `image_scale`.
        held: what is known of each level; empty: nothing.
    """
    grid = timestep_grid(schedule, sampler.num_steps, sampler.spacing)
    threshold = sampler.threshold or config.threshold
    signal = [image_scale(config, scales, i) for i in range(len(initial))]
    x_t, history = list(initial), _History()
    for index, (t, t_next) in enumerate(pairwise(grid)):
        now = [float(table[t]) for table in schedule.tables]
        after = [float(table[t_next]) for table in schedule.tables]
        prediction = list(denoise(x_t, t - 1))
        x0 = [
            apply_threshold(x0_of(p, x, a, config.prediction), threshold, q, ops)
            for p, x, a, q in zip(prediction, x_t, now, signal, strict=True)
        ]
        x0 = _with_known(x0, held)
        noise = draw() if sampler.draws_noise else [0.0] * len(x_t)
        if sampler.kind == "dpmpp":
            extrapolated = history.extrapolate(x0, schedule.log_snr(t), schedule.log_snr(t_next))
            x_next = [
                arithmetic.dpmpp_step(*args)
                for args in zip(x_t, extrapolated, now, after, strict=True)
            ]
        elif sampler.kind == "ddim":
            x_next = [
                arithmetic.ddim_step(*args, sampler.eta)
                for args in zip(x_t, x0, noise, now, after, strict=True)
            ]
        else:
            x_next = [
                arithmetic.ddpm_step(*args) for args in zip(x_t, x0, noise, now, after, strict=True)
            ]
        yield Step(index, len(grid) - 1, t, t_next, x_t, prediction, x0, x_next)
        x_t = x_next


def sample_student(
    jump: JumpTo,
    initial: Sequence[Array],
    schedule: Schedule,
    config: DiffusionConfig,
    grid: Sequence[int],
    held: Sequence[Held] = (),
) -> Iterator[Step]:
    """Jump from `initial` noise to a picture, one evaluation of a student per yielded step.

    A student predicts the mean of its teacher's clean estimates along the way. That mean is
    already guided and in range, so nothing is thresholded here; the last one is the picture.

    Args:
        jump: maps noisy images to predictions; guidance is an input of the network.
        grid: table indices, noisiest first, ending in 0; see `student_grid`.
        held: as in `sample`; the mean of an image that is known is that image.
    """
    x_t = list(initial)
    for index, (t, t_next) in enumerate(pairwise(grid)):
        prediction = list(jump(x_t, t - 1, t_next))
        tables = [(float(table[t]), float(table[t_next])) for table in schedule.tables]
        x0 = [
            x0_of(p, x, now, config.prediction)
            for p, x, (now, _) in zip(prediction, x_t, tables, strict=True)
        ]
        x0 = _with_known(x0, held)
        x_next = [
            arithmetic.dpmpp_step(x, mean, *pair)
            for x, mean, pair in zip(x_t, x0, tables, strict=True)
        ]
        yield Step(index, len(grid) - 1, t, t_next, x_t, prediction, x0, x_next)
        x_t = x_next


def student_grid(distilled: Distilled, num_steps: int | None) -> list[int]:
    """Table indices that a student visits; ConfigError for an unsupported number of steps."""
    starts = distilled.starts
    allowed = [n for n in range(1, len(starts) + 1) if len(starts) % n == 0]
    if num_steps not in allowed:
        known = ", ".join(map(str, allowed))
        raise ConfigError(
            f"steps: this student takes {known}, got {num_steps or 'the whole table'}; give "
            "--steps."
        )
    return [*starts[:: len(starts) // num_steps], 0]


def check_student(distilled: Distilled | None, sampler: SamplerConfig) -> None:
    """Refuse a sampler that does not fit the model. Raises ConfigError."""
    if distilled is None:
        if sampler.kind == "student":
            raise ConfigError(
                "sampler: student needs a distilled model, and this one is not; use ddim, ddpm or "
                "dpmpp, or distil it with `mdm distill`."
            )
        return
    if sampler.kind != "student":
        raise ConfigError(
            f"sampler: this model is a student, which {sampler.kind} cannot run; use "
            "--sampler student --steps 1."
        )
    for name, given in (
        ("eta", sampler.eta != 0),
        ("threshold", sampler.threshold is not None),
        ("spacing", sampler.spacing != "even"),
    ):
        if given:
            raise ConfigError(f"{name}: a student has no use for it; leave out --{name}.")
    student_grid(distilled, sampler.num_steps)
    weight, learned = sampler.guidance_scale, distilled.guidance or (1.0, 1.0)
    if not learned[0] <= weight <= learned[1]:
        raise ConfigError(
            f"guidance: this student learned {learned[0]:g} to {learned[1]:g}, got {weight:g}; "
            "give --guidance."
        )


def apply_threshold(x0: Array, threshold: Threshold, signal: float, ops: Ops) -> Array:
    """Keep a clean estimate in the range of pictures; x0 is in units of 1 / signal."""
    if threshold == "none":
        return x0
    if threshold == "clip":
        return ops.clip(x0 * signal, -1.0, 1.0) / signal
    quantile, bound = DYNAMIC[threshold]
    limit = ops.clip(ops.abs_quantile(x0 * signal, quantile), 1.0, bound)
    return ops.clip(x0 * signal, -limit, limit) / limit / signal


def _with_known(x0: list[Array], held: Sequence[Held]) -> list[Array]:
    return [h.put_into(x) for h, x in zip(held, x0, strict=True)] if held else x0


class _History:
    """The last x0 of DPM-Solver++ 2M; one for all levels, as the log-SNR shift is constant."""

    def __init__(self) -> None:
        self.x0: list[Array] | None = None
        self.step = 0.0

    def extrapolate(self, x0: list[Array], log_snr: float, log_snr_next: float) -> list[Array]:
        step = (log_snr_next - log_snr) / 2
        before, step_before = self.x0, self.step
        self.x0, self.step = x0, step
        if before is None or step == float("inf"):  # the first step, and the last: to zero noise
            return x0
        return [
            arithmetic.dpmpp_extrapolate(a, b, step, step_before)
            for a, b in zip(x0, before, strict=True)
        ]
