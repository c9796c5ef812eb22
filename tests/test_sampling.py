"""The denoising loop, against a teacher whose answers are known exactly."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from backends import Backend
from small import normal

from mdm_apple.config.model import DiffusionConfig, ScheduleConfig
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.schedule import Schedule, build_schedule
from mdm_apple.sampling.walk import SamplerConfig, SamplerKind, Step, sample

MEAN, VARIANCE = 0.3, 0.04  # of the pictures, which are Gaussian
FINE = ScheduleConfig("cosine", num_steps=20_000, shift_power=1.0)


def teacher_x0(x_t: Any, alpha_bar: float) -> Any:
    """E[x0 | x_t] for Gaussian pictures."""
    total = alpha_bar * VARIANCE + 1 - alpha_bar
    return (alpha_bar**0.5 * VARIANCE * x_t + (1 - alpha_bar) * MEAN) / total


def exact(x_start: Any, alpha_bar: float, alpha_bar_end: float) -> Any:
    """Where the probability flow carries x_start: the map between the two Gaussians."""
    spread = [(a * VARIANCE + 1 - a) ** 0.5 for a in (alpha_bar, alpha_bar_end)]
    return alpha_bar_end**0.5 * MEAN + spread[1] / spread[0] * (x_start - alpha_bar**0.5 * MEAN)


def run(
    schedule: Schedule,
    sampler: SamplerConfig,
    initial: list[np.ndarray],
    scales: tuple[int, ...],
    prediction: str = "v",
    threshold: str = "none",
    noise_seed: int = 5,
) -> list[Step]:
    def denoise(x_t: list[Any], time: int) -> list[Any]:
        out = []
        for x, table in zip(x_t, schedule.tables, strict=True):
            alpha_bar = float(table[time + 1])
            x0 = teacher_x0(x, alpha_bar)
            kind = arithmetic.v_from_x0 if prediction == "v" else arithmetic.eps_from_x0
            out.append(kind(x, x0, alpha_bar))
        return out

    random = np.random.RandomState(noise_seed)

    def draw() -> list[np.ndarray]:
        return [random.standard_normal(x.shape) for x in initial]

    config = DiffusionConfig(FINE, prediction=prediction, threshold=threshold)  # type: ignore[arg-type]
    steps = sample(denoise, initial, draw, schedule, config, sampler, scales, NumpyOps())
    return list(steps)


def start(levels: int = 1) -> list[np.ndarray]:
    return [normal(i, 1, 3, 4, 4).astype(np.float64) for i in range(levels)]


def flow_error(kind: SamplerKind, steps: int, level: int, scales: tuple[int, ...]) -> float:
    """Distance from the exact flow just before the last step, which only reads x0 off."""
    schedule, initial = build_schedule(FINE, scales), start(len(scales))
    done = run(schedule, SamplerConfig(kind, steps, spacing="log_snr"), initial, scales)
    table = schedule.tables[level]
    first, last = done[0].t, done[-1].t
    wanted = exact(initial[level], float(table[first]), float(table[last]))
    return float(np.abs(done[-1].x_t[level] - wanted).max())


@pytest.mark.parametrize(("kind", "order"), [("ddim", 1), ("dpmpp", 2)])
@pytest.mark.parametrize(("level", "scales"), [(0, (1,)), (0, (4, 1)), (1, (4, 1))])
def test_the_error_falls_with_the_order_of_the_solver(
    kind: SamplerKind, order: int, level: int, scales: tuple[int, ...]
) -> None:
    """One history of log-SNR steps serves all levels, also those with a shifted schedule."""
    errors = [flow_error(kind, steps, level, scales) for steps in (80, 160, 320)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates == pytest.approx([order] * 2, abs=0.35)


def test_ddim_and_ddpm_reach_the_distribution_of_the_pictures() -> None:
    schedule = build_schedule(ScheduleConfig("deepfloyd"), (1,))
    initial = [normal(0, 4, 3, 32, 32).astype(np.float64)]
    for sampler in (SamplerConfig("ddpm", 200), SamplerConfig("ddim", 200, eta=1.0)):
        done = run(schedule, sampler, initial, (1,))[-1].x_next[0]
        assert done.mean() == pytest.approx(MEAN, abs=0.01)
        assert done.var() == pytest.approx(VARIANCE, rel=0.1)


@pytest.mark.parametrize("scales", [(1,), (2, 1)])
def test_eps_and_v_networks_make_the_same_picture(scales: tuple[int, ...]) -> None:
    schedule, initial = build_schedule(FINE, scales), start(len(scales))
    sampler = SamplerConfig("ddim", 10)
    by_v = run(schedule, sampler, initial, scales, "v")[-1].x_next
    by_eps = run(schedule, sampler, initial, scales, "eps")[-1].x_next
    for a, b in zip(by_v, by_eps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_ddim_with_eta_one_walks_the_ancestral_path() -> None:
    schedule, initial = build_schedule(FINE, (2, 1)), start(2)
    ancestral = run(schedule, SamplerConfig("ddpm", 10), initial, (2, 1))
    ddim = run(schedule, SamplerConfig("ddim", 10, eta=1.0), initial, (2, 1))
    for a, b in zip(ancestral, ddim, strict=True):
        for x, y in zip(a.x_next, b.x_next, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-9)


def test_one_step_of_every_sampler_is_the_clean_estimate() -> None:
    schedule, initial = build_schedule(FINE, (1,)), start()
    for kind in ("ddpm", "ddim", "dpmpp"):
        (step,) = run(schedule, SamplerConfig(kind, 1), initial, (1,))
        np.testing.assert_allclose(step.x_next[0], step.x0[0], atol=1e-12)


def test_the_network_is_told_the_table_index_minus_one() -> None:
    schedule = build_schedule(ScheduleConfig("cosine", num_steps=5), (1,))
    told: list[int] = []

    def denoise(x_t: list[Any], time: int) -> list[Any]:
        told.append(time)
        return [0 * x for x in x_t]

    sampler = SamplerConfig("ddim", None)
    config = DiffusionConfig(ScheduleConfig("cosine", num_steps=5))
    list(sample(denoise, start(), start, schedule, config, sampler, (1,), NumpyOps()))
    assert told == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("sampler", "draws"),
    [
        (SamplerConfig("ddpm", 6), 6),
        (SamplerConfig("ddim", 6, eta=0.5), 6),
        (SamplerConfig("ddim", 6), 0),
        (SamplerConfig("dpmpp", 6), 0),
    ],
)
def test_a_stochastic_sampler_draws_once_per_step_and_the_others_never(
    sampler: SamplerConfig, draws: int
) -> None:
    schedule = build_schedule(FINE, (1,))
    drawn: list[int] = []

    def draw() -> list[Any]:
        drawn.append(1)
        return start()

    config = DiffusionConfig(FINE)
    list(
        sample(
            lambda x_t, _: [0 * x for x in x_t],
            start(),
            draw,
            schedule,
            config,
            sampler,
            (1,),
            NumpyOps(),
        )
    )
    assert len(drawn) == draws


def test_a_threshold_of_the_sampler_replaces_that_of_the_model() -> None:
    schedule, initial = build_schedule(FINE, (1,)), [40 * start()[0]]
    clipped = run(schedule, SamplerConfig("ddim", 4, threshold="clip"), initial, (1,))
    free = run(schedule, SamplerConfig("ddim", 4), initial, (1,))
    assert np.abs(clipped[0].x0[0]).max() == 1
    assert np.abs(free[0].x0[0]).max() > 1
    np.testing.assert_array_equal(
        run(schedule, SamplerConfig("ddim", 4), initial, (1,), threshold="clip")[-1].x_next[0],
        clipped[-1].x_next[0],
    )


def test_backend_arrays_walk_the_same_path_as_numpy(backend: Backend) -> None:
    scales = (2, 1)
    schedule = build_schedule(FINE, scales)
    initial = [normal(i, 2, 3, 4 * s, 4 * s) for i, s in enumerate(scales)]
    noise = [[normal(10 + i, *x.shape) for x in initial] for i in range(5)]
    config = DiffusionConfig(FINE)

    def walk(image: Any, ops: Any, kind: SamplerKind) -> list[Any]:
        draws = iter(noise)

        def denoise(x_t: list[Any], time: int) -> list[Any]:
            tables = [float(t[time + 1]) for t in schedule.tables]
            return [
                arithmetic.v_from_x0(x, teacher_x0(x, a), a)
                for x, a in zip(x_t, tables, strict=True)
            ]

        def draw() -> list[Any]:
            return [image(x) for x in next(draws)]

        sampler = SamplerConfig(kind, 5)
        start_here = [image(x) for x in initial]
        return list(sample(denoise, start_here, draw, schedule, config, sampler, scales, ops))

    for kind in ("ddpm", "ddim", "dpmpp"):
        got = walk(backend.image, backend.ops, kind)[-1].x_next
        wanted = walk(lambda x: x.astype(np.float64), NumpyOps(), kind)[-1].x_next
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(backend.numpy(a), b, atol=1e-4)
