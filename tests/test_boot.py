"""BOOT against teachers that are known in closed form: its recursion is joint DDIM, exactly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from analytic import Mixture
from backends import Backend
from small import around, normal, plain
from tolerances import BOOT_END_POINT, BOOT_FP32, BOOT_FP64

from mdm_apple.config.model import DiffusionConfig, ModelConfig, ScheduleConfig, ScheduleKind
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.data.batches import BatchPlan
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.schedule import Schedule, build_schedule, mean_share
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.generate import Prompt, StudentRuntime
from mdm_apple.sampling.walk import sample_student
from mdm_apple.training.boot import BootBatch, BootConfig, BootDraws, BootLoss, student_config
from mdm_apple.training.learner import Learner
from mdm_apple.training.settings import TrainConfig

NESTS = {2: (4, 2), 3: (4, 2, 1)}
KINDS: tuple[ScheduleKind, ...] = ("cosine", "deepfloyd")


def scales_of(sides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side // sides[-1] for side in sides)


def diffusion_of(kind: ScheduleKind, power: float | None = 2.0) -> DiffusionConfig:
    return DiffusionConfig(ScheduleConfig(kind, shift_power=power), threshold="none")


class Walk:
    """DDIM along a grid, one level list per state, with the teacher's clean estimates."""

    def __init__(
        self, mixture: Mixture, schedule: Schedule, config: DiffusionConfig, grid: list[int]
    ) -> None:
        self.grid = grid
        z = [normal(i, 2, 3, side, side).astype(np.float64) for i, side in enumerate(mixture.sides)]
        self.states, self.clean = [z], []
        for t, t_next in pairwise(grid):
            now = [float(table[t]) for table in schedule.tables]
            after = [float(table[t_next]) for table in schedule.tables]
            x0 = mixture.clean(z, [np.full(2, a) for a in now])
            z = [
                arithmetic.ddim_step(x, c, 0.0, a, b, 0.0)
                for x, c, a, b in zip(z, x0, now, after, strict=True)
            ]
            self.clean.append(x0)
            self.states.append(z)


def farthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


# --- the recursion -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("start", [1000, 730])
def test_the_running_mean_lands_where_joint_ddim_does(
    kind: ScheduleKind, parts: int, levels: int, start: int
) -> None:
    """From any start, at every step, at all levels with one share: 1e-10 in float64."""
    config = diffusion_of(kind)
    schedule = build_schedule(config.schedule, scales_of(NESTS[levels]))
    grid = [*range(start, 0, -23), 0]
    walk = Walk(Mixture.random(NESTS[levels], parts), schedule, config, grid)
    mean = [np.zeros_like(x) for x in walk.states[0]]
    for k, (t, t_next) in enumerate(pairwise(grid)):
        share = float(mean_share(schedule.base, *np.array([[start], [t], [t_next]]))[0])
        mean = [
            arithmetic.move_toward(y, c, share) for y, c in zip(mean, walk.clean[k], strict=True)
        ]
        landed = [
            arithmetic.dpmpp_step(z, y, float(table[start]), float(table[t_next]))
            for z, y, table in zip(walk.states[0], mean, schedule.tables, strict=True)
        ]
        assert farthest(landed, walk.states[k + 1]) < BOOT_FP64
    assert farthest(mean, walk.states[-1]) < BOOT_FP64  # the last mean is the picture


@pytest.mark.parametrize("kind", KINDS)
def test_one_share_serves_all_levels_because_the_shift_is_constant(kind: ScheduleKind) -> None:
    schedule = build_schedule(ScheduleConfig(kind, shift_power=2.0), (16, 4, 1))
    random = np.random.RandomState(0)
    start = random.randint(2, 1001, 200)
    t = random.randint(1, start + 1)
    target = random.randint(0, t)
    shares = [mean_share(table, start, t, target) for table in schedule.tables]
    for share in shares:
        np.testing.assert_allclose(share, mean_share(schedule.base, start, t, target), atol=1e-10)
        assert (share > 0).all()
        assert (share <= 1).all()
    broken = np.linspace(1, 1e-4, 1001)  # any other table has other shares
    assert np.abs(mean_share(broken, start, t, target) - shares[0]).max() > 0.01


def test_the_share_is_whole_on_the_first_step_and_to_the_clean_end() -> None:
    base = build_schedule(ScheduleConfig("cosine"), (1,)).base
    start, t = np.array([1000, 700, 1000]), np.array([1000, 700, 400])
    assert mean_share(base, start, t, np.array([950, 700, 0])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("levels", [2, 3])
def test_two_jumps_with_exact_means_are_one(levels: int) -> None:
    """The flow map composes: u to s to r equals u to r, to 1e-10."""
    config = diffusion_of("cosine")
    schedule = build_schedule(config.schedule, scales_of(NESTS[levels]))
    walk = Walk(Mixture.random(NESTS[levels], 2), schedule, config, [*range(1000, 0, -50), 0])

    def mean(first: int, last: int) -> list[np.ndarray]:
        total = [np.zeros_like(x) for x in walk.states[0]]
        for k in range(first, last):
            steps = np.array([[walk.grid[i]] for i in (first, k, k + 1)])
            share = float(mean_share(schedule.base, *steps)[0])
            total = [
                arithmetic.move_toward(y, c, share)
                for y, c in zip(total, walk.clean[k], strict=True)
            ]
        return total

    def jump(z: list[np.ndarray], first: int, last: int) -> list[np.ndarray]:
        pairs = [(float(t[walk.grid[first]]), float(t[walk.grid[last]])) for t in schedule.tables]
        means = mean(first, last)
        return [arithmetic.dpmpp_step(x, y, *p) for x, y, p in zip(z, means, pairs, strict=True)]

    start, end = 0, len(walk.grid) - 1
    for middle in (1, 7, 15):
        halfway = jump(walk.states[start], start, middle)
        assert farthest(halfway, walk.states[middle]) < BOOT_FP64
        assert farthest(jump(halfway, middle, end), walk.states[end]) < BOOT_FP64


@pytest.mark.parametrize("levels", [2, 3])
def test_pooled_means_of_an_exact_teacher_are_the_means_below(levels: int) -> None:
    config = diffusion_of("cosine")
    schedule = build_schedule(config.schedule, scales_of(NESTS[levels]))
    walk = Walk(Mixture.random(NESTS[levels], 2), schedule, config, [1000, 600, 200, 0])
    for high, low in pairwise(walk.states[-1]):
        assert np.abs(NumpyOps().avg_pool(high, 2) - low).max() < BOOT_FP64


# --- the loss ------------------------------------------------------------------------------------


def nest_of(sides: tuple[int, ...]) -> UNetConfig:
    """A nest in which each level has twice the side of the one inside it."""
    nest = plain()
    for _ in sides[1:]:
        nest = around(nest)
    assert nest.scales == scales_of(sides)
    return nest


def numpy_loss(config: DiffusionConfig, sides: tuple[int, ...], boot: BootConfig) -> BootLoss:
    schedule = build_schedule(config.schedule, scales_of(sides))
    ops = NumpyOps()
    return BootLoss(schedule, config, nest_of(sides), boot, ops, lambda x: x[:, None, None, None])


class Exact:
    """A student and a teacher that are never wrong, for `BootLoss`: v-predictions of a walk.

    The student's answer from `start` to `target` runs DDIM with strides that begin at `start`.
    """

    def __init__(self, mixture: Mixture, loss: BootLoss, stride: int) -> None:
        self.mixture, self.loss, self.stride = mixture, loss, stride

    def clean(self, x_t: list[Any], t: np.ndarray) -> list[Any]:
        return self.mixture.clean(x_t, [table[t] for table in self.loss.schedule.tables])

    def as_v(self, x0: list[Any], z: list[Any], index: np.ndarray) -> list[Any]:
        tables = self.loss.schedule.tables
        return [
            arithmetic.v_from_x0(x, c, table[index][:, None, None, None])
            for x, c, table in zip(z, x0, tables, strict=True)
        ]

    def teacher(self, x_t: list[Any], t: np.ndarray) -> list[Any]:
        return self.as_v(self.clean(x_t, t), x_t, t)

    def student(self, z: list[Any], start: np.ndarray, target: np.ndarray) -> list[Any]:
        out = [np.empty_like(x) for x in z]
        for row in range(len(start)):
            own = [x[row : row + 1] for x in z]
            for x, y in zip(out, self.mean(own, int(start[row]), int(target[row])), strict=True):
                x[row] = y[0]
        return self.as_v(out, z, start)

    def mean(self, z: list[Any], start: int, target: int) -> list[Any]:
        u, t = np.array([start]), np.array([start])
        now, total = z, self.clean(z, t)
        while t[0] > target:
            after = np.maximum(t - self.stride, target)
            clean = self.clean(now, t)
            share = mean_share(self.loss.schedule.base, u, t, after)[:, None, None, None]
            total = [arithmetic.move_toward(y, c, share) for y, c in zip(total, clean, strict=True)]
            now, t = self.loss.jump(z, total, u, after), after
        return total


def rows_for(sides: tuple[int, ...], boot: BootConfig, rows: int, stride: int) -> BootBatch:
    """A batch whose times lie on the strides of each row's start."""
    plan = BatchPlan(3, rows, 0)
    batch = BootDraws(["a", "b", "c"], plan, sides, 1000, boot).batch(0, np.arange(rows))
    steps = np.minimum((batch.start - batch.times) // stride, (batch.start - 1) // stride)
    times = batch.start - steps * stride
    target = np.where(batch.target == batch.start, batch.start, np.maximum(times - stride, 0))
    return BootBatch(
        batch.captions,
        [x.astype(np.float64) for x in batch.noise],
        batch.start,
        batch.via,
        np.where(batch.target == batch.start, batch.start, times),
        target,
        batch.guidance,
    )


@pytest.mark.parametrize("flow_map", [1, 4])
@pytest.mark.parametrize("levels", [2, 3])
def test_a_perfect_student_has_no_loss(levels: int, flow_map: int) -> None:
    """Every row: boundary, bootstrap, later starts reached over the student's own jumps."""
    sides, stride = NESTS[levels], 50
    boot = BootConfig(flow_map=flow_map)
    loss = numpy_loss(diffusion_of("cosine"), sides, boot)
    exact = Exact(Mixture.random(sides, 2), loss, stride)
    batch = rows_for(sides, boot, 12, stride)
    parts = loss(exact.student, exact.student, exact.teacher, batch.noise, batch)
    assert float(np.max(parts.per_sample)) < BOOT_FP64
    assert float(parts.level_gap) < BOOT_FP64
    if flow_map > 1:
        assert len(set(batch.start.tolist())) > 2
        assert (batch.via > batch.start).any()


def test_a_wrong_student_is_told_by_every_kind_of_row() -> None:
    sides = NESTS[2]
    boot = BootConfig(flow_map=2)
    loss = numpy_loss(diffusion_of("cosine"), sides, boot)
    exact = Exact(Mixture.random(sides, 2), loss, 50)
    batch = rows_for(sides, boot, 8, 50)

    def off(z: list[Any], start: np.ndarray, target: np.ndarray) -> list[Any]:
        return [v + 0.01 for v in exact.student(z, start, target)]

    parts = loss(off, exact.student, exact.teacher, batch.noise, batch)
    assert float(np.min(parts.per_sample)) > 1e-6


def test_a_different_coefficient_is_no_longer_ddim() -> None:
    """The twin: Euler's step in log-SNR instead of the exact share leaves a loss."""
    sides = NESTS[2]
    boot = BootConfig(boundary_share=0.0)
    loss = numpy_loss(diffusion_of("cosine"), sides, boot)
    exact = Exact(Mixture.random(sides, 2), loss, 50)
    batch = rows_for(sides, boot, 8, 50)
    assert (batch.times < batch.start).sum() >= 4
    _, target = loss.targets(exact.student, exact.teacher, batch.noise, batch)
    off = Schedule(loss.schedule.base**1.05, loss.schedule.tables)
    wrong = BootLoss(off, loss.diffusion, loss.network, boot, loss.ops, loss.array)
    _, other = wrong.targets(exact.student, exact.teacher, batch.noise, batch)
    assert farthest(target, other) > 1e-4


def test_mixed_rows_learn_only_at_the_levels_that_see_them() -> None:
    sides = NESTS[2]
    config = DiffusionConfig(
        ScheduleConfig("cosine", shift_power=2.0), mixed_ratio=(1.0, 1.0), threshold="none"
    )
    boot = BootConfig(consistency_weight=0.0)
    loss = numpy_loss(config, sides, boot)
    plan = BatchPlan(1, 8, 0)
    batch = BootDraws([""], plan, sides, 1000, boot).batch(0, np.arange(8))
    rows: list[int] = []

    def answer(z: list[Any], *_: np.ndarray) -> list[Any]:
        rows.append(len(z[0]))
        return [0 * x for x in z]

    parts = loss(answer, answer, answer, batch.noise, batch)
    assert parts.seen == [4, 8]
    assert set(rows) == {4}
    assert [len(m) for m in parts.mse] == [4, 8]
    wanted = np.concatenate([2 * parts.mse[0], np.zeros(4)]) + parts.mse[1]
    np.testing.assert_allclose(parts.per_sample, wanted, rtol=1e-6)


# --- in fp32, on a backend -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [2, 3])
def test_the_loss_of_a_perfect_student_is_rounding_in_fp32(
    backend: Backend, kind: ScheduleKind, levels: int
) -> None:
    sides, boot = NESTS[levels], BootConfig(flow_map=2)
    config = diffusion_of(kind)
    exact = Exact(Mixture.random(sides, 2), numpy_loss(config, sides, boot), 50)
    batch = rows_for(sides, boot, 6, 50)
    schedule = exact.loss.schedule

    def array(x: np.ndarray) -> Any:
        return backend.array(x.astype(np.float32).reshape(-1, 1, 1, 1))

    def through(network: Any) -> Any:
        def run(z: Any, *index: np.ndarray) -> list[Any]:
            out = network([backend.numpy(x).astype(np.float64) for x in z], *index)
            return [backend.image(x.astype(np.float32)) for x in out]

        return run

    loss = BootLoss(schedule, config, nest_of(sides), boot, backend.ops, array)
    noise = [backend.image(x.astype(np.float32)) for x in batch.noise]
    student, teacher = through(exact.student), through(exact.teacher)
    parts = loss(student, student, teacher, noise, batch)
    for got, wanted in zip(parts.pred, parts.target, strict=True):
        assert np.abs(backend.numpy(got) - backend.numpy(wanted)).max() < BOOT_FP32


# --- draws and settings --------------------------------------------------------------------------


def test_rows_do_not_depend_on_who_draws_them() -> None:
    plan = BatchPlan(5, 6, 3)
    draws = BootDraws([*"abcde"], plan, (4, 2), 1000, BootConfig(flow_map=4))
    whole = draws.batch(7, np.arange(6))
    part = draws.batch(7, np.array([4, 1]))
    assert part.captions == [whole.captions[4], whole.captions[1]]
    for name in ("start", "via", "times", "target", "guidance"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[4, 1]])
    for a, b in zip(part.noise, whole.noise, strict=True):
        np.testing.assert_array_equal(a, b[[4, 1]])
    other = draws.batch(8, np.arange(6))
    assert not np.array_equal(other.noise[0], whole.noise[0])


def test_draws_cover_every_start_time_and_weight_in_order() -> None:
    boot = BootConfig(flow_map=4, guidance=(1.0, 5.0), stride=0.05)
    plan = BatchPlan(2, 4000, 0)
    batch = BootDraws(["a", "b"], plan, (1,), 1000, boot).batch(0, np.arange(4000))
    assert set(batch.start.tolist()) == {1000, 750, 500, 250}
    assert (batch.start == 1000).mean() == pytest.approx(0.5, abs=0.05)
    assert (batch.via[batch.start < 1000] > batch.start[batch.start < 1000]).all()
    assert (batch.start >= batch.times).all()
    assert (batch.times >= batch.target).all()
    assert batch.times.min() >= 1
    edge = batch.target == batch.start
    assert edge.mean() == pytest.approx(0.2, abs=0.03)
    inner = ~edge
    stride = (batch.times - batch.target)[inner]
    assert set(stride[batch.times[inner] >= 50].tolist()) == {50}
    assert (batch.target[inner][batch.times[inner] < 50] == 0).all()
    assert batch.guidance.min() == pytest.approx(1, abs=0.01)
    assert batch.guidance.max() == pytest.approx(5, abs=0.01)


def test_starts_are_spread_evenly_from_the_end_of_the_table() -> None:
    assert BootConfig().starts(1000) == (1000,)
    assert BootConfig(flow_map=4).starts(1000) == (1000, 750, 500, 250)
    with pytest.raises(ConfigError, match="flow-map"):
        BootConfig(flow_map=3).starts(2)


@pytest.mark.parametrize(
    "changes",
    [
        {"flow_map": 0},
        {"guidance": (3.0, 1.0)},
        {"guidance": (1.0,)},
        {"guidance": (1.0, float("nan"))},
        {"stride": 0.0},
        {"boundary_share": 1.0},
        {"later_share": -0.1},
        {"consistency_weight": float("inf")},
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BootConfig(**changes)


def test_a_student_has_its_teachers_configuration_and_extra_inputs_on_every_level() -> None:
    teacher = preset("emoji")
    config = student_config(teacher, BootConfig(flow_map=2, guidance=(2.0, 4.0)))
    assert all(level.student for level in config.model.levels)
    assert config.distilled is not None
    assert (config.distilled.starts, config.distilled.guidance) == ((1000, 500), (2.0, 4.0))
    with pytest.raises(ConfigError, match="is itself a student"):
        student_config(config, BootConfig())


def test_a_wordless_student_takes_no_weight() -> None:
    teacher = ModelConfig(around(plain(text_dim=None)), side=8)
    config = student_config(teacher, BootConfig())
    assert config.distilled is not None
    assert config.distilled.guidance is None
    assert config.model.student is not None
    assert not config.model.student.guidance


def test_teachers_of_noise_are_refused() -> None:
    teacher = ModelConfig(plain(text_dim=None), side=8, diffusion=DiffusionConfig(prediction="eps"))
    with pytest.raises(ConfigError, match="predicts v"):
        student_config(teacher, BootConfig())


# --- learning ------------------------------------------------------------------------------------


def end_points_apart(
    backend: Backend, learner: Learner[BootBatch], exact: Exact, config: ModelConfig
) -> list[float]:
    """RMSE of one jump of the averaged student to its teacher's walk, over the data's spread."""
    sides, rows = config.sides, 64
    noise = [normal(100 + i, rows, 3, side, side) for i, side in enumerate(sides)]
    walked = exact.mean([x.astype(np.float64) for x in noise], 1000, 0)
    with learner.averaged() as runtime:
        assert isinstance(runtime, StudentRuntime)
        jump = runtime.jumper([Prompt("", 0)] * rows, 1.0, 0)
        start = [runtime.image(x) for x in noise]
        schedule = exact.loss.schedule
        grid, ops = [1000, 0], backend.ops
        (step,) = sample_student(jump, start, schedule, config.diffusion, grid, ops)
        jumped = [runtime.numpy(x) for x in step.x_next]
    errors = [np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(jumped, walked, strict=True)]
    return [float(e) / s for e, s in zip(errors, exact.mixture.spread(), strict=True)]


@pytest.mark.slow
def test_a_trained_student_ends_where_its_teacher_does(backend: Backend) -> None:
    """A tiny nest from fresh weights: within 0.05 of the data's standard deviation, per level.

    Against its teacher walking with the stride that it was taught with.
    """
    sides, steps, rows = NESTS[2], 1800, 32
    core = plain(
        channels=(32,),
        num_resnets=(1,),
        num_attention_layers=(0,),
        text_dim=None,
        micro_conditions={},
    )
    teacher = ModelConfig(
        around(core, micro_conditions={}), side=sides[0], diffusion=diffusion_of("cosine")
    )
    boot = BootConfig(stride=0.1, boundary_share=0.1)
    config = student_config(teacher, boot)
    exact = Exact(Mixture.random(sides, 1), numpy_loss(teacher.diffusion, sides, boot), 100)

    def answers(x_t: list[np.ndarray], t: np.ndarray) -> list[np.ndarray]:
        return [v.astype(np.float32) for v in exact.teacher(x_t, t)]

    train = TrainConfig(
        steps, batch_size=rows, lr=5e-3, warmup_steps=50, decay_share=0.7, ema_decay=0.99
    )
    state = backend.initial_state(config.model, 0)
    learner = backend.boot_learner(config, train, boot, state, answers)
    assert min(end_points_apart(backend, learner, exact, config)) > 0.3
    draws = BootDraws([""] * rows, BatchPlan(rows, rows, 0), config.sides, 1000, boot)
    for index in range(steps):
        learner.step(draws.batch(index, np.arange(rows)), index)
    apart = end_points_apart(backend, learner, exact, config)
    assert max(apart) < BOOT_END_POINT, apart
