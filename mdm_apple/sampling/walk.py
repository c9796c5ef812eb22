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
from mdm_apple.sampling.constraint import Known

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
    known: Sequence[Known] = (),
    begin: int = 0,
    harmonize: int = 0,
) -> Iterator[Step]:
    """Trajectory from `initial` noise to a picture, one network evaluation per yielded step.

    Args:
        denoise: maps noisy images and the number the network receives (table index - 1) to
            predictions with guidance applied.
        initial: standard normals per level, or noisy images where steps are left out. draw: returns
            the next normals, called where the sampler adds noise and where noise goes back.
        schedule: has one table per level of `initial`. scales: as in `image_scale`.
        known: what is known of each level; empty: nothing.
        begin: so many of the first steps are left out.
        harmonize: after each step of the noisier half, noise goes back and the step is taken again,
            so many times. What is made anew then fits what is known better (Lugmayr et al. 2022,
            arXiv:2201.09865); in the cleaner half this was measured to do the opposite.
    """
    grid = timestep_grid(schedule, sampler.num_steps, sampler.spacing)[begin:]
    rounds = _rounds(grid, harmonize)
    threshold = sampler.threshold or config.threshold
    signal = [image_scale(config, scales, i) for i in range(len(initial))]
    x_t, history = list(initial), _History()
    for index, (t, t_next, again) in enumerate(rounds):
        now = [float(table[t]) for table in schedule.tables]
        after = [float(table[t_next]) for table in schedule.tables]
        x_t = _known_states(x_t, known, now)
        prediction = list(denoise(x_t, t - 1))
        x0 = [
            apply_threshold(x0_of(p, x, a, config.prediction), threshold, q, ops)
            for p, x, a, q in zip(prediction, x_t, now, signal, strict=True)
        ]
        x0 = _known_estimates(x0, known, ops)
        noise = draw() if sampler.draws_noise else [0.0] * len(x_t)
        if sampler.kind == "dpmpp":
            log_snrs = schedule.log_snr(t), schedule.log_snr(t_next)
            extrapolated = history.extrapolate(x0, *log_snrs, remember=not again)
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
        yield Step(index, len(rounds), t, t_next, x_t, prediction, x0, x_next)
        x_t = x_next
        if again:
            x_t = [
                arithmetic.noise_back(*args)
                for args in zip(x_next, draw(), after, now, strict=True)
            ]


def sample_student(
    jump: JumpTo,
    initial: Sequence[Array],
    schedule: Schedule,
    config: DiffusionConfig,
    grid: Sequence[int],
    ops: Ops,
    known: Sequence[Known] = (),
) -> Iterator[Step]:
    """Jump from `initial` noise to a picture, one evaluation of a student per yielded step.

    A student predicts the mean of its teacher's clean estimates along the way. That mean is
    already guided and in range, so nothing is thresholded here; the last one is the picture.

    Args:
        jump: maps noisy images to predictions; guidance is an input of the network.
        grid: table indices, noisiest first, ending in 0; see `student_grid`.
        known: as in `sample`; the mean of an image that is known is that image.
    """
    x_t = list(initial)
    for index, (t, t_next) in enumerate(pairwise(grid)):
        tables = [(float(table[t]), float(table[t_next])) for table in schedule.tables]
        x_t = _known_states(x_t, known, [now for now, _ in tables])
        prediction = list(jump(x_t, t - 1, t_next))
        x0 = [
            x0_of(p, x, now, config.prediction)
            for p, x, (now, _) in zip(prediction, x_t, tables, strict=True)
        ]
        x0 = _known_estimates(x0, known, ops)
        x_next = [
            arithmetic.dpmpp_step(x, mean, *pair)
            for x, mean, pair in zip(x_t, x0, tables, strict=True)
        ]
        yield Step(index, len(grid) - 1, t, t_next, x_t, prediction, x0, x_next)
        x_t = x_next


def repeated_steps(num_steps: int) -> int:
    """How many of so many steps harmonizing repeats: the noisier half."""
    return (num_steps + 1) // 2


def _rounds(grid: Sequence[int], harmonize: int) -> list[tuple[int, int, bool]]:
    """Steps between table indices, and whether the same step comes again."""
    last = repeated_steps(len(grid) - 1)
    return [
        (t, t_next, k < harmonize and index < last)
        for index, (t, t_next) in enumerate(pairwise(grid))
        for k in range(1 + (harmonize if index < last else 0))
    ]


def first_step(num_steps: int, strength: float) -> int:
    """How many of the first steps a start from a picture leaves out.

    Strength 1 leaves out none, 0 all; in between, at least one is taken.
    """
    taken = int(strength * num_steps + 0.5)
    return num_steps - (max(1, taken) if strength > 0 else 0)


def first_start(distilled: Distilled, strength: float, length: int) -> int:
    """The same in starts of a student, which are the only places where it can begin.

    length: of the table. Raises ConfigError for a strength at which none is.
    """
    known = [1.0, *(round(start / length, 3) for start in distilled.starts[1:]), 0.0]
    for index, one in enumerate(known):
        if abs(one - strength) < 1e-3:
            return index
    names = ", ".join(f"{one:g}" for one in known)
    raise ConfigError(
        f"strength: this student begins at {names} only, got {strength:g}; give one of these, or "
        "use the model that it learned from."
    )


def student_grid(distilled: Distilled, num_steps: int | None, begin: int = 0) -> list[int]:
    """Table indices that a student visits; ConfigError for an unsupported number of steps.

    begin: so many of its starts are left out.
    """
    starts = distilled.starts
    allowed = [n for n in range(1, len(starts) + 1) if len(starts) % n == 0]
    if num_steps not in allowed:
        known = ", ".join(map(str, allowed))
        raise ConfigError(
            f"steps: this student takes {known}, got {num_steps or 'the whole table'}; give "
            "--steps."
        )
    return [*starts[begin :: len(starts) // num_steps], 0]


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


def _known_estimates(x0: list[Array], known: Sequence[Known], ops: Ops) -> list[Array]:
    return [k.estimate(x, ops) for k, x in zip(known, x0, strict=True)] if known else x0


def _known_states(
    x_t: list[Array], known: Sequence[Known], alpha_bars: Sequence[float]
) -> list[Array]:
    if not known:
        return x_t
    return [k.state(x, a) for k, x, a in zip(known, x_t, alpha_bars, strict=True)]


class _History:
    """The last x0 of DPM-Solver++ 2M; one for all levels, as the log-SNR shift is constant."""

    def __init__(self) -> None:
        self.x0: list[Array] | None = None
        self.step = 0.0

    def extrapolate(
        self, x0: list[Array], log_snr: float, log_snr_next: float, remember: bool
    ) -> list[Array]:
        """remember: False for a step that is taken again."""
        step = (log_snr_next - log_snr) / 2
        before, step_before = self.x0, self.step
        if remember:
            self.x0, self.step = x0, step
        if before is None or step == float("inf"):  # the first step, and the last: to zero noise
            return x0
        return [
            arithmetic.dpmpp_extrapolate(a, b, step, step_before)
            for a, b in zip(x0, before, strict=True)
        ]
