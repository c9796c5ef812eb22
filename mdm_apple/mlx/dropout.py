"""Dropout whose masks belong to the rows of a batch, not to the process that draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn


class RowKeys:
    """The random keys (B, 2) of the rows that come next, while they are traced."""

    keys: mx.array | None = None


class Dropout(nn.Module):
    """Like MLX's, until it is told the rows of the batch that it gets next; see `dropouts_of`.

    Then the mask of a row depends on its key and on the place of this layer in the network.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._kept = 1 - share
        self._rows, self._place = RowKeys(), 0

    @property
    def drops(self) -> bool:
        return self._kept < 1

    def told_by(self, rows: RowKeys, place: int) -> None:
        """Draw by row whenever `rows` holds keys."""
        self._rows, self._place = rows, place

    def __call__(
        self, x: mx.array, key: mx.array | None = None, samples: int | None = None
    ) -> mx.array:
        """x (B, ...), the first rows of the batch.

        key: for the random mask, where a recomputation must draw the same one as the first time;
            None takes the next key of MLX's global state. Unused if masks are drawn by row.
        samples: that x holds, if each has several frames.
        """
        if not self.drops or not self.training or not len(x):
            return x
        if self._rows.keys is None:
            return mx.random.bernoulli(self._kept, x.shape, key=key) * x * (1 / self._kept)
        return self._mask(x, samples or len(x), self._rows.keys) * x * (1 / self._kept)

    def _mask(self, x: mx.array, samples: int, keys: mx.array) -> mx.array:
        shape = (len(x) // samples, *x.shape[1:])
        own = keys[:samples] + mx.array([0, self._place], mx.uint32)
        drawn: Any = mx.vmap(lambda key: mx.random.bernoulli(self._kept, shape, key=key))(own)
        return drawn.reshape(x.shape)


def dropouts_of(*networks: nn.Module | None) -> tuple[RowKeys, int]:
    """What tells all layers that drop something which rows they get, and their number."""
    found = [
        layer
        for network in networks
        if network is not None
        for _, layer in sorted(network.named_modules(), key=lambda named: named[0])
        if isinstance(layer, Dropout) and layer.drops
    ]
    rows = RowKeys()
    for place, layer in enumerate(found):
        layer.told_by(rows, place)
    return rows, len(found)


def keys_of(seeds: Sequence[int]) -> mx.array:
    """Random keys (B, 2) from seeds of 62 bits."""
    return mx.array(np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32))
