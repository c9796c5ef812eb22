"""The noise of each timestep: alpha_bar tables per level, and the timesteps a sampler visits.

A table has num_steps + 1 float64 entries; index 0 is clean (alpha_bar 1), index num_steps is noise.
The network receives `t - 1` for table index t.
Sources: cosine with log-SNR bounds, Kingma et al. 2021 (arXiv:2107.00630); squared cosine with
capped betas, Nichol & Dhariwal 2021 (arXiv:2102.09672); linear, Ho et al. 2020 (arXiv:2006.11239);
sigmoid, Jabri et al. 2022 (arXiv:2212.11972); shift with the scale, Gu et al. 2023
(arXiv:2310.15111).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ScheduleConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Indices
from mdm_apple.errors import ConfigError

Table = NDArray[np.float64]
Spacing = Literal["even", "log_snr"]

COSINE_LOG_SNR_BOUND = 5.0
MAX_BETA = 0.999


@dataclass(frozen=True)
class Schedule:
    """alpha_bar of every level, highest resolution first, and the unshifted base table."""

    base: Table
    tables: tuple[Table, ...]

    @property
    def num_steps(self) -> int:
        return len(self.base) - 1

    def log_snr(self, index: int) -> float:
        """log(alpha_bar / (1 - alpha_bar)) of the unshifted table; infinite at index 0."""
        alpha_bar = float(self.base[index])
        return math.inf if alpha_bar >= 1 else math.log(alpha_bar / (1 - alpha_bar))


def build_schedule(config: ScheduleConfig, scales: tuple[int, ...]) -> Schedule:
    """Tables for levels whose sides stand in the ratio `scales`, e.g. (16, 4, 1)."""
    base = base_table(config)
    power = config.shift_power
    return Schedule(base, tuple(base if power is None else shift(base, s, power) for s in scales))


def base_table(config: ScheduleConfig) -> Table:
    """The unshifted alpha_bar table, float64 (num_steps + 1,)."""
    n = config.num_steps
    match config.kind:
        case "cosine":
            return np.concatenate([[1.0], _log_snr_cosine(np.linspace(0, 1, n))])
        case "linear":
            return _from_betas(np.linspace(config.beta_start, config.beta_end, n))
        case "deepfloyd":
            u = np.arange(n + 1) / n
            curve = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
            return _from_betas(np.minimum(1 - curve[1:] / curve[:-1], MAX_BETA))
        case "sigmoid":
            return _sigmoid(np.arange(n + 1) / n)


def shift(table: Table, scale: int, power: float) -> Table:
    """The table with SNR divided by scale ** power, so log-SNR lowered by power * log(scale)."""
    if scale <= 1:
        return table
    noise_over_signal = (1 - table) / table * float(scale) ** power
    return 1 / (1 + noise_over_signal)


def vdm_weights(base: Table) -> Table:
    """SNR(t - 1) / SNR(t) - 1 per table index, the first value repeated (arXiv:2107.00630)."""
    now, before = base[2:], base[1:-1]
    weights = before * (1 - now) / ((1 - before) * now) - 1
    return np.concatenate([weights[:1], weights[:1], weights])


def mean_share(table: Table, start: Indices, t: Indices, target: Indices) -> Table:
    """Share of the step t -> target in the mean of the clean estimates from `start` on, float64.

    With R = (SNR)^1/2, a deterministic sampler at t has reached x_t = (sigma_t / sigma_u) x_u +
    sigma_t (R_t - R_u) Y, where Y is the mean of its clean estimates since u = start, weighted by
    the growth of R. In the step to `target`, the estimate at t gets the share
    (R_target - R_t) / (R_target - R_u), which is 1 on the first step. A constant log-SNR shift
    multiplies every R by the same factor, so one share serves all levels. It extends the
    signal-ODE step of Gu et al. 2023 (BOOT, arXiv:2306.05544), which has R_u = 0.

    Args:
        start, t, target: table indices (N,) with start >= t >= target, t above 0.
    """
    gain = (table[t] / (1 - table[t])) ** 0.5
    gain_at_start = (table[start] / (1 - table[start])) ** 0.5
    inverse = ((1 - table[target]) / table[target]) ** 0.5  # 1 / R of the target: 0 if clean
    first = start == t
    way = np.where(first, 1.0, 1 - inverse * gain_at_start)
    return np.where(first, 1.0, (1 - inverse * gain) / way)


def check_steps(num_steps: int | None, length: int) -> None:
    """Refuse more evaluations than a table of `length` timesteps allows; None means all of them."""
    in_range("steps", num_steps, 1, length, what="(the length of the table)")


def timestep_grid(
    schedule: Schedule, num_steps: int | None, spacing: Spacing = "even"
) -> list[int]:
    """Table indices from noisy to clean that a sampler visits; the last is 0.

    Args:
        num_steps: network evaluations; None for all of the table.
        spacing: `even` in the index (the published rule), or `log_snr`: even in log-SNR.
    """
    n = schedule.num_steps
    if num_steps is None:
        return list(range(n, -1, -1))
    check_steps(num_steps, n)
    stride = (n + 1) / (num_steps + 1)
    even = np.round(np.arange(num_steps + 1) * stride).astype(int)[::-1].tolist()
    return even if spacing == "even" else _log_snr_grid(schedule, num_steps, even[0])


def _log_snr_grid(schedule: Schedule, num_steps: int, start: int) -> list[int]:
    log_snr = np.array([schedule.log_snr(i) for i in range(1, schedule.num_steps + 1)])
    wanted = np.linspace(log_snr[start - 1], log_snr[0], num_steps)
    picked = [int(np.abs(log_snr - value).argmin()) + 1 for value in wanted]
    for i in range(1, num_steps):  # strictly decreasing, even if neighbours share an index
        picked[i] = min(picked[i], picked[i - 1] - 1)
    if picked[-1] < 1:
        raise ConfigError(f"steps: too many for a grid even in log-SNR, got {num_steps}.")
    return [*picked, 0]


def _from_betas(betas: Table) -> Table:
    return np.exp(np.cumsum(np.concatenate([[0.0], np.log1p(-betas)])))


def _log_snr_cosine(u: Table) -> Table:
    low = math.atan(math.exp(-COSINE_LOG_SNR_BOUND / 2))
    high = math.atan(math.exp(COSINE_LOG_SNR_BOUND / 2))
    log_snr = -2 * np.log(np.tan((high - low) * u + low))
    return 1 / (1 + np.exp(-log_snr))


def _sigmoid(u: Table, start: float = -3.0, end: float = 3.0) -> Table:
    def logistic(x: Table | float) -> Table:
        return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))

    curve = (logistic(end) - logistic(u * (end - start) + start)) / (
        logistic(end) - logistic(start)
    )
    return np.clip(curve, 1e-9, 1.0)
