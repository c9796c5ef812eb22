"""AdamW with PyTorch's rules: always bias corrections, decay outside the moments.

Source: Loshchilov & Hutter 2019 (arXiv:1711.05101). MLX has its own AdamW; this one computes the
bias corrections in float64 before they become arrays, names parameters as checkpoints do, and gives
each its own share of the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from mdm_apple.training.settings import TrainConfig

EPS = 1e-8
Arrays = dict[str, mx.array]


class AdamW:
    """Moments by name. `moments` is always the same object: it is state of a compiled step."""

    def __init__(self, parameters: Mapping[str, mx.array], train: TrainConfig) -> None:
        self._beta1, self._beta2, self._decay = train.beta1, train.beta2, train.weight_decay
        self.steps = 0
        self.moments: dict[str, Arrays] = {
            key: {name: mx.zeros_like(value) for name, value in parameters.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }

    def begin(self, rate: float) -> Arrays:
        """Count a step; return its scalars as arrays, so a compiled step is traced only once."""
        self.steps += 1
        return {
            "rate": mx.array(rate),
            "correction": mx.array(1 - self._beta1**self.steps),
            "root_correction": mx.array((1 - self._beta2**self.steps) ** 0.5),
        }

    def apply(
        self,
        parameters: Mapping[str, mx.array],
        gradients: Mapping[str, mx.array],
        scalars: Arrays,
        rate_scales: Mapping[str, float],
    ) -> Arrays:
        """New parameters; replaces the moments. rate_scales: factors of the rate, default 1."""
        means, squares = self.moments["exp_avg"], self.moments["exp_avg_sq"]
        new: Arrays = {}
        for name, value in parameters.items():
            rate = scalars["rate"] * rate_scales.get(name, 1.0)
            gradient = gradients[name]
            mean = self._beta1 * means[name] + (1 - self._beta1) * gradient
            square = self._beta2 * squares[name] + (1 - self._beta2) * gradient * gradient
            means[name], squares[name] = mean, square
            root = mx.sqrt(square) / scalars["root_correction"] + EPS
            kept = value * (1 - rate * self._decay) if self._decay else value
            new[name] = kept - (rate / scalars["correction"]) * mean / root
        return new


def clip(gradients: Arrays, longest: float) -> tuple[Arrays, mx.array]:
    """Gradients scaled to a global norm of at most `longest`, and the original norm."""
    norm = mx.sqrt(sum((mx.square(g).sum() for g in gradients.values()), mx.array(0.0)))
    factor = mx.minimum(longest / (norm + 1e-6), 1.0)
    return {name: g * factor for name, g in gradients.items()}, norm
