"""The best 2^n values for a tensor of fp16 numbers: weighted k-means in one dimension.

fp16 has 65,536 values, so a tensor of any size is a histogram. With prefix sums over it one step
of Lloyd's algorithm costs k binary searches, whatever the size of the tensor. What Lloyd finds
depends on its start: exact dynamic programming on binned values for few centroids, for many the
density that is optimal in the limit, the cube root of that of the data (Bennett 1948, Panter and
Dite 1951). Deterministic throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Halves = NDArray[np.float16]
Doubles = NDArray[np.float64]

EXACT_START_CENTROIDS = 16  # beyond, binning costs more than the asymptotic start loses
BINS = 512
MAX_ROUNDS = 400
TOLERANCE = 1e-7  # of the squared error, per round
EQUALISING_ROUNDS = 30
REACH = 8
MAX_SWEEPS = 40


@dataclass(frozen=True)
class Palette:
    """values: fp16 (2^bits,), ascending. indices: uint8, flat, one per number of the tensor."""

    values: Halves
    indices: NDArray[np.uint8]


def palette_of(tensor: Halves, bits: int) -> Palette:
    """At most 2^bits values for all numbers of a finite fp16 tensor, by least squared error."""
    codes = np.ascontiguousarray(tensor).reshape(-1).view(np.uint16)
    counts = np.bincount(codes, minlength=1 << 16)
    present = np.flatnonzero(counts).astype(np.uint16)
    order = np.argsort(present.view(np.float16), kind="stable")
    present = present[order]
    support = present.view(np.float16).astype(np.float64)
    centroids = _centroids(support, counts[present].astype(np.float64), 1 << bits)
    values = np.sort(centroids.astype(np.float16))
    values = np.concatenate([values, np.repeat(values[-1:], (1 << bits) - len(values))])
    nearest = _nearest(values.astype(np.float64), support).astype(np.uint8)
    lookup = np.zeros(1 << 16, np.uint8)
    lookup[present] = nearest
    return Palette(values, lookup[codes])


def _centroids(support: Doubles, weights: Doubles, count: int) -> Doubles:
    """Up to `count` centroids of ascending values with their weights."""
    if len(support) <= count:
        return support
    if count <= EXACT_START_CENTROIDS:
        start = _exact_on_bins(support, weights, count)
    else:
        start = _companded(support, weights, count)
    return _refine(support, weights, _lloyd(support, weights, start))


def _companded(support: Doubles, weights: Doubles, count: int) -> Doubles:
    """Centroids as dense as the cube root of the data's density.

    The density is measured on cells that are moved until all have the same share of it, so that
    long tails are resolved however little of the data they hold.
    """
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    edges = np.interp(np.linspace(0, mass[-1], 4 * count + 1), mass[1:], support)
    for _ in range(EQUALISING_ROUNDS):
        share = np.diff(mass[np.searchsorted(support, edges, "right")])
        reach = np.concatenate([[0.0], np.cumsum(np.cbrt(share * np.diff(edges) ** 2))])
        edges = np.interp(np.linspace(0, reach[-1], len(edges)), reach, edges)
    return np.unique(edges[2::4])


def _exact_on_bins(support: Doubles, weights: Doubles, count: int) -> Doubles:
    """Optimal centroids of the values gathered into BINS bins of equal cube-root mass."""
    places = _companded(support, weights, min(BINS, len(support)))
    cuts = np.searchsorted(support, (places[1:] + places[:-1]) / 2)
    starts = np.unique(np.concatenate([[0], cuts]))
    w = np.concatenate([[0.0], np.cumsum(np.add.reduceat(weights, starts))])
    s = np.concatenate([[0.0], np.cumsum(np.add.reduceat(weights * support, starts))])
    # Within [i, j) the squared error is (sum of squares) - s^2 / w, and the squares add up to the
    # same total whatever the partition: so the sum of s^2 / w is to be made as large as possible.
    bins = len(starts)
    count = min(count, bins)
    every = np.arange(bins + 1)
    gain = _gain(w, s, every, every)
    best = gain[0]
    choices: list[NDArray[np.intp]] = []
    for _ in range(count - 1):
        total = best[:, None] + gain
        choices.append(total.argmax(axis=0))
        best = total.max(axis=0)
    ends = [bins]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    borders = np.array([0, *ends[:0:-1], bins])
    return np.diff(s[borders]) / np.diff(w[borders])


def _lloyd(support: Doubles, weights: Doubles, centroids: Doubles) -> Doubles:
    """Assign and average until the squared error stands still; empty cells are dropped."""
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * support)])
    total = float(weights @ support**2)
    before = np.inf
    for _ in range(MAX_ROUNDS):
        cuts = np.searchsorted(support, (centroids[1:] + centroids[:-1]) / 2)
        borders = np.concatenate([[0], cuts, [len(support)]])
        borders = np.unique(borders)
        w, s = np.diff(mass[borders]), np.diff(moment[borders])
        centroids = s / w
        error = max(total - float(s @ centroids), 0.0)
        if before - error <= TOLERANCE * before:
            break
        before = error
    return centroids


def _refine(support: Doubles, weights: Doubles, centroids: Doubles) -> Doubles:
    """Move all borders between cells at once to the best of REACH places on either side of each.

    Dynamic programming over the candidates, with strides from coarse to single values: it shifts
    centroids from crowded to sparse regions, which Lloyd does only over thousands of rounds.
    """
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * support)])
    cuts = np.searchsorted(support, (centroids[1:] + centroids[:-1]) / 2)
    spread = max(1, len(support) // (4 * len(centroids)))
    stride = 1 << (spread.bit_length() - 1)
    steps = np.arange(-REACH, REACH + 1)
    for _ in range(MAX_SWEEPS):
        candidates = np.clip(cuts[:, None] + stride * steps, 1, len(support) - 1)
        moved = _best_cuts(mass, moment, candidates)
        if np.array_equal(moved, cuts):
            if stride == 1:
                break
            stride //= 2
        cuts = moved
    borders = np.unique(np.concatenate([[0], cuts, [len(support)]]))
    return np.diff(moment[borders]) / np.diff(mass[borders])


def _best_cuts(mass: Doubles, moment: Doubles, candidates: NDArray[np.intp]) -> NDArray[np.intp]:
    """One candidate per row, ascending, with the largest sum of moment^2 / mass over the cells."""
    best = _gain(mass, moment, np.zeros(1, np.intp), candidates[0])[0]
    choices: list[NDArray[np.intp]] = []
    for before, after in pairwise(candidates):
        total = best[:, None] + _gain(mass, moment, before, after)
        choices.append(total.argmax(axis=0))
        best = total.max(axis=0)
    last = best + _gain(mass, moment, candidates[-1], np.array([len(mass) - 1]))[:, 0]
    picks = [int(last.argmax())]
    for choice in reversed(choices):
        picks.append(int(choice[picks[-1]]))
    return candidates[np.arange(len(candidates)), picks[::-1]]


def _gain(
    mass: Doubles, moment: Doubles, starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> Doubles:
    dw = mass[ends][None, :] - mass[starts][:, None]
    ds = moment[ends][None, :] - moment[starts][:, None]
    return np.where(dw > 0, ds**2 / np.where(dw > 0, dw, 1), -np.inf)


def _nearest(values: Doubles, numbers: Doubles) -> NDArray[np.intp]:
    return np.searchsorted((values[1:] + values[:-1]) / 2, numbers)
