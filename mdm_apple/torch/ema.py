"""Exponential moving average of weights, in fp32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Averaged copies of a module's parameters by name; starts as a copy."""

    def __init__(self, module: nn.Module) -> None:
        self._live = dict(module.named_parameters())
        self.weights = {k: p.detach().float().clone() for k, p in self._live.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * weights."""
        live = [p.detach().float() for p in self._live.values()]
        torch._foreach_lerp_(list(self.weights.values()), live, 1 - decay)  # pyright: ignore[reportPrivateUsage]

    def load(self, weights: Mapping[str, Tensor]) -> None:
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and live weights in place; a second call undoes it."""
        for name, average in self.weights.items():
            live = self._live[name]
            held = live.detach().clone()
            live.copy_(average)
            average.copy_(held)
