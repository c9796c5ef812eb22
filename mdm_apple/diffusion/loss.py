"""The nested training loss, with its parts.

Gu et al. 2023 (arXiv:2310.15111), section 3: one t for all levels, independent noise per level, and
the sum of the levels' squared errors. Weightings: Hang et al. 2023 (min-SNR, arXiv:2303.09556).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.config.types import Array
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.ops import Ops
from mdm_apple.diffusion.prediction import convert, image_scale, limit_output, target_of

Network = Callable[[list[Array]], Sequence[Array]]
SNR_CAP = 5.0


@dataclass(frozen=True)
class LossParts:
    """Per-sample losses (B,) and their components; lists have an entry per level."""

    per_sample: Array
    mse: list[Array]  # (B,) each, unweighted; rows from seen[i] on were not predicted
    seen: list[int]  # rows that each level predicted
    x_t: list[Array]
    model_out: list[Array]
    pred: list[Array]
    target: list[Array]


def nested_loss(
    network: Network,
    x0: Sequence[Array],
    eps: Sequence[Array],
    alpha_bar: Sequence[Array],
    config: DiffusionConfig,
    scales: Sequence[int],
    ops: Ops,
    seen: Sequence[int] | None = None,
) -> LossParts:
    """Loss of one batch, or of some rows of it.

    Args:
        network: maps noisy images per level to predictions per level; higher levels may return
            fewer rows if `config.mixed_ratio` is set.
        x0: clean images per level, highest first, in [-1, 1]. eps: their noise.
        alpha_bar: (B, 1, 1, 1) per level. scales: side of each level over the innermost.
    """
    levels, rows = range(len(x0)), len(x0[-1])
    fractions = config.mixed_fractions or (1.0,) * len(x0)
    weights = config.level_weights or (1.0,) * len(x0)
    signal = [image_scale(config, scales, i) for i in levels]
    target_signal = (
        [1.0] if len(x0) == 1 else signal
    )  # as published: a plain target is not rescaled
    seen = [int(f * rows) for f in fractions] if seen is None else list(seen)

    x_t = [arithmetic.add_noise(x0[i] / signal[i], eps[i], alpha_bar[i]) for i in levels]
    raw = network([x_t[i][: seen[i]] for i in levels])
    raw = [limit_output(out, config, len(x0), ops) for out in raw]
    out = [ops.pad_rows(o, rows) if len(o) < rows else o for o in raw]
    pred = [
        convert(out[i], x_t[i], alpha_bar[i], config.prediction, config.loss_target) for i in levels
    ]
    target = [
        target_of(x0[i] / target_signal[i], eps[i], alpha_bar[i], config.loss_target)
        for i in levels
    ]
    mse, total = [], 0.0
    for i in levels:
        error = ops.sample_mean((pred[i] - target[i]) ** 2)
        mse.append(error)
        if fractions[i] < 1:  # also where a part of the batch happens to be seen as a whole
            error = error[: seen[i]] / fractions[i]
            error = ops.pad_rows(error, rows) if seen[i] < rows else error
        weight = snr_weight(alpha_bar[i].reshape(rows), config, ops)
        total = total + weights[i] * (error if weight is None else weight * error)
    return LossParts(total, mse, seen, x_t, out, pred, target)


def batch_loss(per_sample: Array, sample_weights: Array | None = None) -> Array:
    """Mean over the batch, or the mean weighted by `sample_weights` (B,)."""
    if sample_weights is None:
        return per_sample.mean()
    return (per_sample * sample_weights).sum() / sample_weights.sum()


def snr_weight(alpha_bar: Array, config: DiffusionConfig, ops: Ops) -> Array | None:
    """Weight of a squared error of kind `loss_target`, or None for 1.

    Both caps are stated for errors of x0: min(SNR, 5) and min(SNR + 1, 5). An error of v is
    (SNR + 1) times the error of x0, and an error of eps SNR times. `vdm` weighs whole samples.
    """
    if config.loss_weighting in ("plain", "vdm"):
        return None
    snr = arithmetic.snr(alpha_bar)
    weight = ops.clip(snr if config.loss_weighting == "min_snr" else snr + 1, None, SNR_CAP)
    if config.loss_target == "v":
        return weight / (snr + 1)
    return weight / snr if config.loss_target == "eps" else weight
