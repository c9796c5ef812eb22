"""BOOT: a student that jumps where its teacher takes many steps, learned without pictures.

Gu et al. 2023 (arXiv:2306.05544), here for a nest: all levels jump at once, with one coefficient,
because the shift between their log-SNRs is constant. A student Y(z_u, u, s) receives a noisy state
z at table index u (`start`). It predicts the mean of the clean estimates that its teacher would
make on the way to index s (`target`); `arithmetic.dpmpp_step` with this mean lands at s. The
training target is the student's own answer for a nearer t, moved by the teacher's estimate there
(`schedule.mean_share`). If u is always the end of the table, this is BOOT; with later starts too,
it is a flow map for a few steps.

The student predicts v at z_u, like its teacher: Y = alpha_u z_u - sigma_u v. Its extra inputs begin
at zero, so at first it returns its teacher's estimate at u for every target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import DiffusionConfig, Distilled, ModelConfig
from mdm_apple.config.network import Student, UNetConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Array, Indices
from mdm_apple.data.batches import BatchPlan, RowStream
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.noise import CHANNELS
from mdm_apple.diffusion.ops import Ops
from mdm_apple.diffusion.prediction import image_scale, x0_of
from mdm_apple.diffusion.pyramid import level_below
from mdm_apple.diffusion.schedule import Schedule, mean_share
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.walk import apply_threshold
from mdm_apple.training.parts import Part, whole

# (states per level, start, target) -> v per level; indices as NumPy arrays (B,)
Jump = Callable[[Sequence[Array], Indices, Indices], Sequence[Array]]
# (states per level, t) -> guided prediction per level
Teacher = Callable[[Sequence[Array], Indices], Sequence[Array]]


@dataclass(frozen=True)
class BootConfig:
    """How a student learns."""

    flow_map: int = 1  # number of starts to jump from: 1 is BOOT, K allows up to K steps
    guidance: tuple[float, ...] = (1.0, 6.0)  # smallest and largest weight in training
    stride: float = 0.05  # teacher's step, as a share of the table
    boundary_share: float = 0.2  # share of rows that learn the answer at their start itself
    later_share: float = 0.5  # share of rows that start after pure noise; flow maps only
    consistency_weight: float = 0.1  # weight of the squared difference between pooled neighbours

    def __post_init__(self) -> None:
        in_range("flow-map", self.flow_map, 1, 64, what="starts")
        low_high = self.guidance
        if len(low_high) != 2 or not -100 <= low_high[0] <= low_high[1] <= 100:
            raise ConfigError(
                "guidance: expected the smallest and the largest weight within -100 to 100, got "
                f"{' '.join(map(str, low_high))}."
            )
        in_range("stride", self.stride, 0, 1, above=True)
        in_range("boundary_share", self.boundary_share, 0, 1, below=True)
        in_range("later_share", self.later_share, 0, 1, below=True)
        in_range("consistency_weight", self.consistency_weight, 0, 1000)

    def starts(self, num_steps: int) -> tuple[int, ...]:
        """Table indices that the student jumps from, evenly spread, noisiest first."""
        count = self.flow_map
        if count > num_steps:
            raise ConfigError(f"flow-map: expected at most {num_steps} starts, got {count}.")
        return tuple(round(num_steps * (count - i) / count) for i in range(count))


def student_config(teacher: ModelConfig, config: BootConfig) -> ModelConfig:
    """The configuration of a teacher's student; raises ConfigError if there can be none."""
    if teacher.model.student is not None:
        raise ConfigError("teacher: is itself a student; give the model that it learned from.")
    if teacher.diffusion.prediction != "v":
        raise ConfigError(
            "teacher: expected a model that predicts v, whose clean estimate is defined in pure "
            f"noise, got one that predicts {teacher.diffusion.prediction}."
        )
    worded = teacher.text is not None
    return dataclasses.replace(
        teacher,
        model=_with_student(teacher.model, Student(target_time=True, guidance=worded)),
        distilled=Distilled(
            config.starts(teacher.diffusion.schedule.num_steps),
            config.guidance if worded else None,
        ),
    )


def _with_student(level: UNetConfig, student: Student) -> UNetConfig:
    inner = level.inner and _with_student(level.inner, student)
    return dataclasses.replace(level, student=student, inner=inner, freeze_inner=False)


@dataclass(frozen=True)
class BootBatch:
    """Some rows of one step; they contain no pictures.

    captions: B. noise: standard normal (B, 3, side, side) per level, highest first.
    start, via, times, target: table indices (B,). A row begins at noise and reaches `start` in one
    or two of the student's own jumps (by way of `via`). There it learns its answer for `target`
    from the teacher at `times`. guidance: weight (B,).
    """

    captions: list[str]
    noise: list[NDArray[np.float32]]
    start: Indices
    via: Indices
    times: Indices
    target: Indices
    guidance: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, start: int, stop: int) -> BootBatch:
        """Rows from start to stop, as views."""
        part = slice(start, stop)
        return BootBatch(
            self.captions[part],
            [level[part] for level in self.noise],
            self.start[part],
            self.via[part],
            self.times[part],
            self.target[part],
            self.guidance[part],
        )


@dataclass(frozen=True)
class BootDraws:
    """Batches that depend only on (seed, step, row), like those of `batches.py`.

    Row r of step s reads the block (stream, r, s) of the same generator: stream 0 for times and
    guidance, 1 + k for the noise of level k counted from the innermost.
    """

    captions: Sequence[str]
    plan: BatchPlan
    sides: tuple[int, ...]
    num_steps: int
    config: BootConfig

    def batch(self, step: int, rows: Indices) -> BootBatch:
        count, starts = len(rows), self.config.starts(self.num_steps)
        stream = RowStream(self.plan.seed)
        noise = [np.empty((count, CHANNELS, side, side), np.float32) for side in self.sides]
        indices = np.empty((4, count), np.int64)
        guidance = np.empty(count, np.float32)
        for k, row in enumerate(rows.tolist()):
            uniform = stream.at(0, row, step).random(6)
            indices[:, k] = _draw_times(uniform, starts, self.config, self.num_steps)
            low, high = self.config.guidance
            guidance[k] = low + uniform[5] * (high - low)
            for place, level in enumerate(noise):
                normal = stream.at(len(noise) - place, row, step)
                normal.standard_normal(dtype=np.float32, out=level[k])
        captions = [self.captions[int(i)] for i in self.plan.indices(step, rows)]
        start, via, times, target = indices
        return BootBatch(captions, noise, start, via, times, target, guidance)


def _draw_times(
    uniform: NDArray[np.float64], starts: tuple[int, ...], config: BootConfig, num_steps: int
) -> tuple[int, int, int, int]:
    """start, via, t and target of a row from uniforms in [0, 1)."""
    which = via = 0
    if len(starts) > 1 and uniform[1] < config.later_share:
        which = 1 + int(uniform[2] * (len(starts) - 1))
        via = int(uniform[3] * which)
    start = starts[which]
    if uniform[0] < config.boundary_share:
        return start, starts[via], start, start
    t = 1 + int(uniform[4] * start)
    return start, starts[via], t, max(0, t - max(1, round(config.stride * num_steps)))


@dataclass(frozen=True)
class BootParts:
    """Loss of each row (B,) and its components.

    mse: squared error per level, for the rows that the level saw. level_gap: mean squared
    difference between neighbouring levels, the higher one average-pooled, or with the frames of the
    lower one; None for a single level.
    """

    per_sample: Array
    mse: list[Array]
    seen: list[int]
    level_gap: Array | None
    start: list[Array]  # z_u
    target: list[Array]
    pred: list[Array]


@dataclass(frozen=True)
class BootLoss:
    """The loss for one schedule and configuration.

    Args:
        array: converts numbers (B,) to a backend array (B, 1, 1, 1).
        network: its levels say how one follows from the one around it.
    """

    schedule: Schedule
    diffusion: DiffusionConfig
    network: UNetConfig
    config: BootConfig
    ops: Ops
    array: Callable[[NDArray[np.float64]], Array]

    def __call__(
        self,
        student: Jump,
        settled: Jump,
        teacher: Teacher,
        noise: Sequence[Array],
        batch: BootBatch,
        part: Part | None = None,
    ) -> BootParts:
        """Loss of one batch, or of some rows of it.

        Args:
            student: the network that learns. settled: the same network without gradients.
            teacher: without gradients, guidance applied.
            noise: the batch's; with `mixed_ratio`, higher levels see only its first rows.
            part: which rows of a batch these are; None for all.
        """
        rows = len(batch)
        part = part or whole(rows)
        fractions = self.diffusion.mixed_fractions or (1.0,) * len(noise)
        weights = self.diffusion.level_weights or (1.0,) * len(noise)
        seen, of_batch = part.seen(fractions), part.seen_of_batch(fractions)
        z = [x[:n] for x, n in zip(noise, seen, strict=True)]
        start, target = self.targets(settled, teacher, z, batch)

        pred = self.answer(student(start, batch.start, batch.target), start, batch.start)
        signal = self._signal()
        mse, total = [], 0.0
        for i in range(len(seen)):
            error = self.ops.sample_mean(((pred[i] - target[i]) * signal[i]) ** 2)
            mse.append(error)
            total = total + weights[i] * self._padded(error / fractions[i], rows)
        level_gap = self._level_gap(pred, signal)
        if level_gap:
            for n, error in zip(of_batch, level_gap, strict=False):
                share = self.config.consistency_weight * part.batch_size / max(n, 1)
                total = total + share * self._padded(error, rows)
        mean_gap = sum(error.mean() for error in level_gap) / len(level_gap) if level_gap else None
        return BootParts(total, mse, seen, mean_gap, start, target, pred)

    def targets(
        self, settled: Jump, teacher: Teacher, noise: Sequence[Array], batch: BootBatch
    ) -> tuple[list[Array], list[Array]]:
        """States at the start of each row, and the clean means to learn from there, per level."""
        z = list(noise)
        last = np.full_like(batch.start, self.schedule.num_steps)
        if (batch.start != last).any():  # rows that start at noise stay there
            for now, after in ((last, batch.via), (batch.via, batch.start)):
                z = self.jump(z, self.answer(settled(z, now, after), z, now), now, after)
        near = self.answer(settled(z, batch.start, batch.times), z, batch.start)
        at_t = self.jump(z, near, batch.start, batch.times)
        clean = [
            apply_threshold(x0, self.diffusion.threshold, q, self.ops)
            for x0, q in zip(
                self.answer(teacher(at_t, batch.times), at_t, batch.times),
                self._signal(),
                strict=True,
            )
        ]
        share = self.array(mean_share(self.schedule.base, batch.start, batch.times, batch.target))
        return z, [
            arithmetic.move_toward(y, x0, share[: len(y)])
            for y, x0 in zip(near, clean, strict=True)
        ]

    def answer(
        self, prediction: Sequence[Array], z: Sequence[Array], start: Indices
    ) -> list[Array]:
        """Clean images of predictions at the states z of table index `start`."""
        kind = self.diffusion.prediction
        return [
            x0_of(p, x, a, kind)
            for p, x, a in zip(prediction, z, self._alpha_bar(z, start), strict=True)
        ]

    def jump(
        self, z: Sequence[Array], mean: Sequence[Array], start: Indices, target: Indices
    ) -> list[Array]:
        """The states at `target` from those at `start`, and the clean mean in between."""
        now, after = self._alpha_bar(z, start), self._alpha_bar(z, target)
        return [arithmetic.dpmpp_step(*args) for args in zip(z, mean, now, after, strict=True)]

    def _alpha_bar(self, z: Sequence[Array], index: Indices) -> list[Array]:
        tables = self.schedule.tables
        return [self.array(table[index[: len(x)]]) for x, table in zip(z, tables, strict=True)]

    def _signal(self) -> list[float]:
        scales = self.network.scales
        return [image_scale(self.diffusion, scales, i) for i in range(len(scales))]

    def _level_gap(self, pred: Sequence[Array], signal: Sequence[float]) -> list[Array]:
        """Mean squared difference between what follows from each level and the level below."""
        out = []
        for i in range(len(pred) - 1):
            follows = level_below(pred[i], self.network.levels[i], self.ops)
            below = pred[i + 1][: len(pred[i])]
            out.append(self.ops.sample_mean((follows * signal[i] - below * signal[i + 1]) ** 2))
        return out

    def _padded(self, error: Array, rows: int) -> Array:
        return self.ops.pad_rows(error, rows) if len(error) < rows else error
