"""Kinds of prediction (eps, v, x0), and conversions between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdm_apple.config.model import DiffusionConfig, LossTarget, Prediction
from mdm_apple.config.types import Array
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.ops import Ops


def image_scale(config: DiffusionConfig, scales: Sequence[int], level: int) -> float:
    """The divisor of a level's image before noise is added (and its factor at the end).

    A plain UNet may rescale its signal; a nest without a shifted schedule divides by the scale
    instead (Chen 2023, arXiv:2301.10972).
    """
    if len(scales) == 1:
        return config.rescale_signal or 1.0
    return 1.0 if config.schedule.shift_power is not None else float(scales[level])


def limit_output(out: Array, config: DiffusionConfig, levels: int, ops: Ops) -> Array:
    """The soft limit that a plain UNet may apply to its prediction."""
    scale = config.output_scale
    return ops.tanh(out / scale) * scale if levels == 1 and scale else out


def x0_of(prediction: Array, x_t: Array, alpha_bar: Any, kind: Prediction) -> Array:
    """The clean image that a prediction implies."""
    if kind == "v":
        return arithmetic.x0_from_v(x_t, prediction, alpha_bar)
    return arithmetic.x0_from_eps(x_t, prediction, alpha_bar)


def convert(
    prediction: Array, x_t: Array, alpha_bar: Any, kind: Prediction, target: LossTarget
) -> Array:
    """Convert a prediction from one kind to another, through x0."""
    if kind == target:
        return prediction
    x0 = x0_of(prediction, x_t, alpha_bar, kind)
    if target == "x0":
        return x0
    if target == "v":
        return arithmetic.v_from_x0(x_t, x0, alpha_bar)
    return arithmetic.eps_from_x0(x_t, x0, alpha_bar)


def target_of(x0: Array, eps: Array, alpha_bar: Any, target: LossTarget) -> Array:
    """The target of the loss."""
    if target == "x0":
        return x0
    return eps if target == "eps" else arithmetic.velocity(x0, eps, alpha_bar)
