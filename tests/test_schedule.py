"""alpha_bar tables, their shift with the scale, and the timesteps a sampler visits."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdm_apple.config.model import ScheduleConfig, ScheduleKind
from mdm_apple.diffusion.schedule import (
    Table,
    base_table,
    build_schedule,
    shift,
    timestep_grid,
    vdm_weights,
)
from mdm_apple.errors import ConfigError

KINDS = get_args(ScheduleKind)
kinds = st.sampled_from(KINDS)
lengths = st.integers(2, 2000)


def log_snr(table: Table) -> Table:
    """Of every entry but the clean one."""
    return np.log(table[1:] / (1 - table[1:]))


@given(kinds, lengths)
def test_log_snr_falls_from_the_clean_image_to_noise(kind: ScheduleKind, length: int) -> None:
    table = base_table(ScheduleConfig(kind, num_steps=length))
    assert table.shape == (length + 1,)
    assert table.dtype == np.float64
    assert table[0] == 1
    assert 0 < table[-1] < table[1] < 1
    assert (np.diff(log_snr(table)) < 0).all()


@given(kinds, lengths, st.integers(2, 64))
def test_shift_with_power_zero_changes_nothing(kind: ScheduleKind, length: int, scale: int) -> None:
    table = base_table(ScheduleConfig(kind, num_steps=length))
    np.testing.assert_allclose(shift(table, scale, 0.0), table, rtol=1e-12)


@given(kinds, lengths, st.integers(2, 64), st.floats(0.25, 4))
def test_shift_lowers_log_snr_by_power_times_log_scale(
    kind: ScheduleKind, length: int, scale: int, power: float
) -> None:
    table = base_table(ScheduleConfig(kind, num_steps=length))
    shifted = shift(table, scale, power)
    assert shifted[0] == 1
    odds = (1 - shifted[1:]) / shifted[1:] / ((1 - table[1:]) / table[1:])
    np.testing.assert_allclose(odds, float(scale) ** power, rtol=1e-6)


def test_only_levels_above_the_innermost_are_shifted() -> None:
    config = ScheduleConfig("cosine", shift_power=2.0)
    schedule = build_schedule(config, (16, 4, 1))
    np.testing.assert_array_equal(schedule.tables[2], schedule.base)
    for table, scale in zip(schedule.tables, (16, 4, 1), strict=True):
        lowered = log_snr(schedule.base) - log_snr(table)
        np.testing.assert_allclose(lowered, 2 * math.log(scale), atol=1e-9)


def test_without_a_power_all_levels_share_one_table() -> None:
    schedule = build_schedule(ScheduleConfig("linear"), (4, 1))
    for table in schedule.tables:
        np.testing.assert_array_equal(table, schedule.base)


def test_sigmoid_runs_from_clean_to_almost_pure_noise_through_one_half() -> None:
    table = base_table(ScheduleConfig("sigmoid", num_steps=1000))
    assert table[0] == 1
    assert table[-1] == 1e-9
    assert table[500] == pytest.approx(0.5)
    # the middle of a logistic from -3 to 3 falls with slope 6/4, stretched to reach 1 and 0
    reach = 1 / (1 + math.exp(-3)) - 1 / (1 + math.exp(3))
    assert (table[499] - table[501]) / 0.002 == pytest.approx(1.5 / reach, rel=1e-4)


def test_cosine_starts_and_ends_at_its_log_snr_bounds() -> None:
    ends = log_snr(base_table(ScheduleConfig("cosine")))[[0, -1]]
    np.testing.assert_allclose(ends, [5, -5])


def test_linear_table_is_the_product_of_its_betas() -> None:
    table = base_table(ScheduleConfig("linear", num_steps=3, beta_start=0.1, beta_end=0.3))
    np.testing.assert_allclose(table, [1, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])


def test_deepfloyd_betas_never_exceed_their_cap() -> None:
    table = base_table(ScheduleConfig("deepfloyd"))
    betas = 1 - table[1:] / table[:-1]
    assert betas.max() == pytest.approx(0.999)
    assert betas[-1] == pytest.approx(0.999)
    assert betas[-2] < 0.999


def test_log_snr_of_the_clean_image_is_infinite() -> None:
    schedule = build_schedule(ScheduleConfig("cosine"), (1,))
    assert schedule.log_snr(0) == math.inf
    assert schedule.log_snr(1) == pytest.approx(5)
    assert schedule.num_steps == 1000


def test_vdm_weights_are_the_relative_fall_of_snr() -> None:
    base = base_table(ScheduleConfig("cosine", num_steps=10))
    weights, snr = vdm_weights(base), base[1:] / (1 - base[1:])
    assert weights.shape == base.shape
    np.testing.assert_allclose(weights[2:], snr[:-1] / snr[1:] - 1)
    assert weights[0] == weights[1] == weights[2]


@given(kinds, st.integers(2, 400), st.data())
def test_the_even_grid_falls_strictly_to_zero(
    kind: ScheduleKind, length: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, length))
    grid = timestep_grid(build_schedule(ScheduleConfig(kind, length), (1,)), steps)
    assert len(grid) == steps + 1
    assert grid[-1] == 0
    assert grid[0] <= length
    assert (np.diff(grid) < 0).all()


@given(kinds, st.integers(2, 400), st.data())
def test_the_log_snr_grid_falls_strictly_to_zero_or_is_refused(
    kind: ScheduleKind, length: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, length))
    schedule = build_schedule(ScheduleConfig(kind, length), (1,))
    try:
        grid = timestep_grid(schedule, steps, "log_snr")
    except ConfigError:
        assert steps > length // 20  # only where the table is too short for so many
        return
    assert len(grid) == steps + 1
    assert grid[-1] == 0
    assert grid[0] == timestep_grid(schedule, steps)[0]
    assert (np.diff(grid) < 0).all()


def test_the_log_snr_grid_is_even_in_log_snr() -> None:
    schedule = build_schedule(ScheduleConfig("deepfloyd"), (1,))
    grid = timestep_grid(schedule, 12, "log_snr")
    steps = np.diff([schedule.log_snr(t) for t in grid[:-1]])
    even = steps.mean()
    np.testing.assert_allclose(steps[2:-2], even, rtol=0.05)


def test_all_steps_of_the_table_are_visited_when_no_number_is_given() -> None:
    schedule = build_schedule(ScheduleConfig("cosine", num_steps=5), (1,))
    assert timestep_grid(schedule, None) == [5, 4, 3, 2, 1, 0]
    assert timestep_grid(schedule, 5) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_more_steps_than_the_table_has_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="steps: expected 1 to 1000"):
        timestep_grid(build_schedule(ScheduleConfig(), (1,)), steps)
