"""The best 2^n values for groups of fp16 numbers: weighted k-means in one dimension.

A cell is a run of neighbouring values that share one centroid. The search finds the borders between
cells for many groups at once:

1. start: cells of equal squared error, as optimal cells have in the limit of many cells (Panter and
   Dite 1951, Gersho 1979). A walk along the values closes a cell when its error exceeds a bound,
   and the bound is adjusted until the wanted number of cells just covers the values.
2. sweep: each starting cell is divided into bins, and dynamic programming moves all borders
   together to the best of a few bins on either side, from coarse steps to single bins. This shifts
   whole cells from crowded to sparse regions, which Lloyd's algorithm does only very slowly.
3. Lloyd's algorithm on the values themselves.

Within [i, j) the squared error is (sum of squares) - moment^2 / mass. The squares add up to the
same total for any choice of cells, so the search maximises the sum of moment^2 / mass.

The result is deterministic, and a group's palette does not depend on the other groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Indices

from .equal_error_cells import equal_error_cells
from .histogram import CODES, Doubles, Halves, Histogram, histogram

BINS_PER_CELL = {1: 64, 2: 64, 3: 64, 4: 64, 6: 32, 8: 16}  # by bits
REACH = 8  # places tried on either side of a border
SWEEPS = 4  # at most, per stride; strides go from half a cell to one bin
LLOYD_ROUNDS = 20
GROUPS_AT_ONCE = 128


@dataclass(frozen=True)
class Palette:
    """values: fp16 (2^bits,), ascending. indices: uint8, flat, one per number of the group.

    squared_error: of the numbers against their palette values. squared_sum: of the numbers.
    """

    values: Halves
    indices: NDArray[np.uint8]
    squared_error: float
    squared_sum: float


def palette_of(tensor: Halves, bits: int) -> Palette:
    """The at most 2^bits values that fit a finite fp16 tensor with the least squared error."""
    return palettes_of([tensor], bits)[0]


def palettes_of(groups: Sequence[Halves], bits: int) -> list[Palette]:
    """A palette for each group of fp16 numbers. Raises ConversionError if any is not finite."""
    return [
        palette
        for start in range(0, len(groups), GROUPS_AT_ONCE)
        for palette in _palettes(groups[start : start + GROUPS_AT_ONCE], bits)
    ]


def _palettes(groups: Sequence[Halves], bits: int) -> list[Palette]:
    counted = [histogram(group) for group in groups]
    count = 1 << bits
    hard = [h for h in counted if len(h.values) > count]
    solved = iter(_centroids(hard, bits) if hard else ())
    out: list[Palette] = []
    for group, h in zip(groups, counted, strict=True):
        values = (next(solved) if len(h.values) > count else h.values).astype(np.float16)
        out.append(_apply(group, h, np.sort(values), count))
    return out


def _apply(group: Halves, h: Histogram, values: Halves, count: int) -> Palette:
    values = np.concatenate([values, np.repeat(values[-1:], count - len(values))])
    middles = values.astype(np.float64)
    nearest = np.searchsorted((middles[1:] + middles[:-1]) / 2, h.values).astype(np.uint8)
    lookup = np.zeros(CODES, np.uint8)
    lookup[h.codes] = nearest
    error = float(np.diff(h.mass) @ np.square(h.values - middles[nearest]))
    codes = np.ascontiguousarray(group).reshape(-1).view(np.uint16)
    return Palette(values, lookup[codes], error, float(h.square[-1]))


def _centroids(groups: Sequence[Histogram], bits: int) -> list[Doubles]:
    """2^bits centroids, ascending, for each group; every group has more distinct values."""
    count, per_cell = 1 << bits, BINS_PER_CELL[bits]
    bins = count * per_cell
    edges = [_bin_edges(h, cells, per_cell) for h, cells in _starts(groups, count)]
    mass, moment = np.empty((bins + 1, len(groups))), np.empty((bins + 1, len(groups)))
    for g, (h, edge) in enumerate(zip(groups, edges, strict=True)):
        mass[:, g], moment[:, g] = h.mass[edge], h.moment[edge]
    cuts = np.repeat(np.arange(1, count)[:, None] * per_cell, len(groups), axis=1)
    stride, offsets = per_cell // 2, np.arange(-REACH, REACH + 1)
    while stride:
        for _ in range(SWEEPS):
            moved = _sweep(mass, moment, cuts, stride * offsets)
            if np.array_equal(moved, cuts):
                break
            cuts = moved
        stride //= 2
    return [
        _lloyd(h, np.concatenate([[0], edge[cuts[:, g]], [len(h.values)]]))
        for g, (h, edge) in enumerate(zip(groups, edges, strict=True))
    ]


def _starts(groups: Sequence[Histogram], count: int) -> list[tuple[Histogram, Indices]]:
    """Each group with the count + 1 places that bound its starting cells."""
    cells = equal_error_cells(groups, count)
    return [(h, _divide_more(c, count)) for h, c in zip(groups, cells, strict=True)]


def _divide_more(cells: Indices, count: int) -> Indices:
    """Halve cells, spread evenly over those that can be halved, until there are enough."""
    cells = np.unique(cells)
    while len(cells) <= count:
        sizes = np.diff(cells)
        can = np.flatnonzero(sizes > 1)
        missing = min(count + 1 - len(cells), len(can))
        halved = can[np.arange(missing) * len(can) // missing]
        cells = np.sort(np.concatenate([cells, cells[halved] + sizes[halved] // 2]))
    return cells


def _bin_edges(h: Histogram, cells: Indices, per_cell: int) -> Indices:
    """Places of the values that begin the bins: `per_cell` bins of equal width in every cell."""
    inner = cells[1:-1]
    borders = np.concatenate(
        [h.values[:1], (h.values[inner] + h.values[inner - 1]) / 2, h.values[-1:]]
    )
    fine = np.interp(
        np.arange((len(cells) - 1) * per_cell + 1) / per_cell, np.arange(len(cells)), borders
    )
    edges = np.searchsorted(h.values, fine)
    edges[0], edges[-1] = 0, len(h.values)
    return edges


def _sweep(mass: Doubles, moment: Doubles, cuts: Indices, offsets: Indices) -> Indices:
    """Move every border by one of `offsets`, so that the total gain is largest.

    mass, moment: sums before each bin, (bins + 1, G). cuts: the bins where all cells but the first
    begin, ascending, (cells - 1, G).
    """
    last, groups = len(mass) - 1, np.arange(mass.shape[1])
    places = np.clip(cuts[:, None, :] + offsets[None, :, None], 0, last)
    flat = places * len(groups) + groups
    m, s = np.take(mass, flat), np.take(moment, flat)  # (cells - 1, W, G)
    best = np.empty_like(m)  # total gain of the cells before a border, by the border's place
    best[0] = _gain(m[0], s[0])
    shape = (len(offsets), *m.shape[1:])
    dm, ds, crossed = np.empty(shape), np.empty(shape), np.empty(shape, bool)
    for i in range(1, len(cuts)):  # `_gain` without new memory: this loop is hot
        np.subtract(m[i], m[i - 1][:, None], out=dm)
        np.subtract(s[i], s[i - 1][:, None], out=ds)
        np.less(dm, 0, out=crossed)
        np.multiply(ds, ds, out=ds)
        np.maximum(dm, _EMPTY, out=dm)
        np.divide(ds, dm, out=ds)
        np.copyto(ds, -np.inf, where=crossed)
        np.add(ds, best[i - 1][:, None], out=ds)
        np.maximum.reduce(ds, axis=0, out=best[i])
    moved = np.empty_like(cuts)
    end_m, end_s = mass[last], moment[last]
    for i in range(len(cuts) - 1, -1, -1):
        chosen = (best[i] + _gain(end_m - m[i], end_s - s[i])).argmax(axis=0)
        moved[i] = places[i, chosen, groups]
        end_m, end_s = m[i, chosen, groups], s[i, chosen, groups]
    return moved


_EMPTY = 1e-30  # mass of an empty cell, whose moment is exactly zero


def _gain(mass: Doubles, moment: Doubles) -> Doubles:
    """moment^2 / mass; zero for an empty cell, -infinity for one that ends before it begins."""
    return np.where(mass < 0, -np.inf, moment**2 / np.maximum(mass, _EMPTY))


def _lloyd(h: Histogram, borders: Indices) -> Doubles:
    """Centroids, one per cell, after alternating assignment and averaging."""
    borders = _divide_more(borders, len(borders) - 1)
    centroids = np.diff(h.moment[borders]) / np.diff(h.mass[borders])
    for _ in range(LLOYD_ROUNDS):
        cuts = np.searchsorted(h.values, (centroids[1:] + centroids[:-1]) / 2)
        moved = np.concatenate([[0], cuts, [len(h.values)]])
        if np.array_equal(moved, borders):
            break
        borders = moved
        mass = np.diff(h.mass[borders])
        kept = mass > 0  # a cell without values keeps its centroid
        means = np.diff(h.moment[borders]) / np.where(kept, mass, 1)
        centroids = np.where(kept, means, centroids)
    return centroids
