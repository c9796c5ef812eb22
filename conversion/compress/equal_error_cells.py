"""Cells of equal squared error: the starting point of the search for the best palette."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Indices

from .histogram import Doubles, Histogram

ROUNDS = 5
MORE_ROUNDS = 12  # for groups whose cells always ran out


def equal_error_cells(groups: Sequence[Histogram], count: int) -> list[Indices]:
    """For each group the places that bound at most `count` cells, and nearly that many.

    Args:
        groups: each with more than `count` different values.
    """
    offsets = np.cumsum([0, *(len(h.mass) for h in groups)])
    first, last = offsets[:-1], offsets[1:] - 1
    mass, moment, square = (
        np.concatenate([getattr(h, name) for h in groups]) for name in ("mass", "moment", "square")
    )
    total = square[last] - moment[last] ** 2 / mass[last]
    # for a uniform density the error of a cell is total / count^3; others are within a few times
    bound = np.log(np.maximum(total, 1e-300) / count**3 / 2)
    low, high = np.full_like(bound, -np.inf), np.full_like(bound, np.inf)
    # as many values in each cell: kept where few values lie on fp16's even grid of tiny numbers, as
    # any bound that merges one pair there merges many
    best = first + (last - first) * np.arange(count + 1)[:, None] // count
    used = np.zeros(len(groups))
    for r in range(MORE_ROUNDS):
        active = (r < ROUNDS) | (used == 0)
        if not active.any():
            break
        limit = count + count // 4
        cuts = _walk(mass, moment, square, first, last, np.exp(bound), limit)
        cells = (cuts < last).sum(axis=0)
        lasted = cells <= count
        better = active & lasted & (cells > used)
        best[:, better] = cuts[: count + 1, better]
        used = np.where(better, cells, used)
        # a cell's error grows with the cube of its width, so the bound goes with the count cubed
        reached = (mass[cuts[-1]] - mass[first]) / mass[last]
        needed = np.where(cells > limit, limit / np.maximum(reached, 0.02), cells)
        high = np.where(active & lasted, np.minimum(high, bound), high)
        low = np.where(active & ~lasted, np.maximum(low, bound), low)
        bound = _next_bound(bound + 3 * np.log(needed / (count - 0.5)), low, high, bound, lasted)
    best[-1] = last
    return [best[:, g] - first[g] for g in range(len(groups))]


def _next_bound(
    wanted: Doubles, low: Doubles, high: Doubles, bound: Doubles, lasted: NDArray[np.bool_]
) -> Doubles:
    """The bound that the count calls for if it lies between those tried, else their middle."""
    bracketed = np.isfinite(low) & np.isfinite(high)
    middle = np.where(bracketed, low, bound) / 2 + np.where(bracketed, high, bound) / 2
    outward = bound + np.where(lasted, -0.5, 0.5)
    inside = (wanted > low) & (wanted < high)
    return np.where(inside, wanted, np.where(bracketed, middle, outward))


def _walk(
    mass: Doubles,
    moment: Doubles,
    square: Doubles,
    first: Indices,
    last: Indices,
    bound: Doubles,
    limit: int,
) -> Indices:
    """Ends of at most `limit` cells, each grown while its squared error stays within `bound`.

    Places index the joined sums, one walk per group: (limit + 1, G).
    """
    steps = [1 << n for n in range(int((last - first).max()).bit_length() - 1, -1, -1)]
    place = first
    ends = [place]
    for _ in range(limit):
        m, s, q = mass[place], moment[place], square[place]
        for step in steps:
            ahead = np.minimum(place + step, last)
            dm, ds, dq = mass[ahead] - m, moment[ahead] - s, square[ahead] - q
            place = np.where((dq - bound) * dm <= ds * ds, ahead, place)
        ends.append(place)
    return np.stack(ends)
