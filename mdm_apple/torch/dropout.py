"""Dropout whose masks belong to the rows of a batch, not to the process that draws them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Like PyTorch's, until it is told the rows of the batch that it gets next; see `draw_by_row`.

    Then the mask of a row depends on its seed and on the place of this layer in the network. A
    layer that is called twice with the same rows, as for recomputation, draws the same mask.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.seeds: Sequence[int] | None = None
        self.place = 0

    @property
    def by_row(self) -> bool:
        """Whether masks are drawn here, and by row."""
        return self.training and self.share > 0 and self.seeds is not None

    def forward(self, x: Tensor, samples: int | None = None) -> Tensor:
        """x (B, ...), the first rows of the batch; samples: that x holds, if each has frames."""
        if not self.by_row:
            return F.dropout(x, self.share, self.training)
        return x * (self._kept(x, samples or len(x)) / (1 - self.share)) if len(x) else x

    def _kept(self, x: Tensor, samples: int) -> Tensor:
        shape, generator = (len(x) // samples, *x.shape[1:]), torch.Generator(x.device)
        rows: list[Tensor] = []
        for seed in (self.seeds or ())[:samples]:
            generator.manual_seed(seed + self.place)
            rows.append(torch.rand(shape, generator=generator, device=x.device))
        return (torch.cat(rows) < 1 - self.share).to(x.dtype)


def dropouts_of(*networks: nn.Module | None) -> list[Dropout]:
    """The layers that drop something, each with its place."""
    found = [
        layer
        for network in networks
        if network is not None
        for _, layer in sorted(network.named_modules(), key=lambda named: named[0])
        if isinstance(layer, Dropout) and layer.share
    ]
    for place, layer in enumerate(found):
        layer.place = place
    return found


def draw_by_row(layers: Sequence[Dropout], seeds: Sequence[int]) -> None:
    """Let the layers draw the masks of the rows that come next; seeds: one for each row."""
    for layer in layers:
        layer.seeds = seeds
