"""Picks one option per item, so that the sizes fit and the sum of the errors is least.

This is the multiple-choice knapsack problem, solved exactly by dynamic programming over sizes.
Sizes are rounded up to at most CELLS steps, so the choice always fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CELLS = 1 << 16
FINEST = 64  # bytes; nothing in a weight file is smaller

Choice = tuple[int, float]  # size, error


@dataclass(frozen=True)
class Frontier:
    """The least total error for every size, and the choices behind it.

    least (cells + 1,): the error by total size in steps; infinite where nothing fits.
    """

    step: int
    least: NDArray[np.float64]
    _items: tuple[tuple[Choice, ...], ...]
    _chosen: NDArray[np.uint8]  # (items, cells + 1)

    def within(self, size: int) -> list[int] | None:
        """The option of each item for a total of at most `size`; None if nothing fits."""
        cell = min(size // self.step, len(self.least) - 1)
        return self._picked(cell) if cell >= 0 and np.isfinite(self.least[cell]) else None

    @property
    def smallest(self) -> int:
        """The least size for which `within` finds a choice."""
        return int(np.flatnonzero(np.isfinite(self.least))[0]) * self.step

    def reaching(self, error: float) -> list[int] | None:
        """The smallest choice whose errors add up to at most `error`; None if there is none."""
        cells = np.flatnonzero(self.least <= error)
        return self._picked(int(cells[0])) if cells.size else None

    def _picked(self, cell: int) -> list[int]:
        out: list[int] = []
        for item, chosen in zip(reversed(self._items), reversed(self._chosen), strict=True):
            out.append(int(chosen[cell]))
            cell -= _steps(item[out[-1]][0], self.step)
        return out[::-1]


def frontier(items: Sequence[Sequence[Choice]]) -> Frontier:
    """The best choice for every size.

    Args:
        items: the options of each item; sizes in bytes, errors not negative.
    """
    largest = sum(max(size for size, _ in item) for item in items)
    step = max(FINEST, -(-largest // CELLS))
    # every size is rounded up separately
    cells = sum(max(_steps(size, step) for size, _ in item) for item in items)
    least = np.zeros(cells + 1)
    chosen = np.zeros((len(items), cells + 1), np.uint8)
    for k, item in enumerate(items):
        found = np.full_like(least, np.inf)
        for option, (size, error) in enumerate(item):
            shift = _steps(size, step)
            candidate = np.full_like(least, np.inf)
            candidate[shift:] = least[: len(least) - shift] + error
            better = candidate < found
            found[better] = candidate[better]
            chosen[k, better] = option
        least = found
    return Frontier(step, least, tuple(tuple(item) for item in items), chosen)


def _steps(size: int, step: int) -> int:
    return -(-size // step)
