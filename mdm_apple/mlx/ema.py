"""Exponential moving average of weights, in fp32."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
from mlx import nn

from mdm_apple.mlx.weights import flat, nested


class Ema:
    """Averaged copies of a module's parameters by name; starts as a copy.

    `weights` is always the same dictionary, so that it can be state of a compiled step.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.weights = {k: mx.array(p) for k, p in flat(module.parameters()).items()}

    def update(self, decay: mx.array, rest: mx.array) -> None:
        """average <- decay * average + rest * weights, with rest = 1 - decay.

        Both are arguments because 1 - decay loses digits in fp32 if decay is close to 1.
        """
        live = flat(self._module.parameters())
        for name, average in self.weights.items():
            self.weights[name] = decay * average + rest * live[name]

    def load(self, weights: Mapping[str, mx.array]) -> None:
        for name in self.weights:
            self.weights[name] = weights[name]

    def swap(self) -> None:
        """Exchange averaged and live weights; a second call undoes it."""
        live = flat(self._module.parameters())
        self._module.update(nested(self.weights))
        self.weights.update(live)
