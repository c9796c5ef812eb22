"""Which samples of shards each step sees, computed from (seed, step): lanes, or all over.

Lanes. The rows of a batch are dealt to L lanes: row r belongs to lane r mod L. Each lane has shards
of its own, dealt by the seed. It visits them in an order of (seed, lane, epoch), 16 at a time, and
shuffles the samples of these 16. So a process with strided rows reads only the shards of its own
lanes, each once in an epoch, wherever the number of processes divides L.

Uniform. One permutation of all samples for each epoch. It mixes fully, and each process reads every
shard; that suits a disk of the machine itself.

A third order, "folder", is that of a folder of pictures (`data/batches`), and takes as much memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from mdm_apple.config.types import Indices
from mdm_apple.data.batches import check_plan, rows_of_step, validation_rows
from mdm_apple.data.dataset import DataError
from mdm_apple.data.shards.permutation import Permutation

Order = Literal["lanes", "uniform", "folder"]

MAX_LANES = 64
MAX_UNEVEN = 0.1  # the longest lane less the shortest, as a share of their mean
WINDOW = 16  # shards whose samples a lane mixes
_DEAL, _VISIT, _MIX, _SPREAD = 3, 4, 5, 6  # which draw of a seed; 1 and 2 are those of folders


def plan_of(
    order: Literal["lanes", "uniform"],
    starts: Indices,
    batch_size: int,
    seed: int,
    held_out: Indices,
    lanes: int | None = None,
) -> LanePlan | UniformPlan:
    """What each step sees.

    Args:
        starts: number of the first sample of each shard, and of all samples.
        held_out: shards that no step sees.
        lanes: as many as the run began with; None chooses.

    Raises DataError if no sample is left, or for a number of lanes that cannot be.
    """
    counts = np.diff(starts)
    seen = counts > 0
    seen[held_out] = False
    kept = np.flatnonzero(seen)
    if not len(kept):
        raise DataError("validation share: leaves no shard to train on; hold out fewer.")
    shards = _Shards(starts[kept], counts[kept])
    if order == "lanes":
        return LanePlan(shards, batch_size, seed, lanes)
    return UniformPlan(shards, batch_size, seed)


def shards_held_out(shards: int, share: float, seed: int) -> Indices:
    """Shards held out for validation, ascending: at least one unless share is 0."""
    if share and shards < 2:
        raise DataError(
            "validation share: holds out whole shards, and there is one; put fewer samples into a "
            "shard, or take --order folder."
        )
    return validation_rows(shards, share, seed)


@dataclass(frozen=True)
class _Shards:
    """Those that steps see: number of the first sample, and of samples."""

    firsts: Indices
    counts: Indices


class LanePlan:
    """See above.

    lanes: the largest divisor of the batch, up to 64, for which all lanes are about equally long.
    The samples of a short lane are seen more often than others.
    """

    def __init__(
        self, shards: _Shards, batch_size: int, seed: int, lanes: int | None = None
    ) -> None:
        check_plan(batch_size, seed)
        self.batch_size = batch_size
        self._seed, self._shards = seed, shards
        self._of_lane = _dealt(shards.counts, batch_size, seed, lanes)
        self.lanes = len(self._of_lane)
        self._lengths = [int(shards.counts[some].sum()) for some in self._of_lane]
        self._visits = lru_cache(maxsize=2 * self.lanes)(self._visit)

    def indices(self, step: int, rows: Sequence[int] | Indices | None = None) -> Indices:
        """Data set indices (int64) of some rows of `step`, by default all."""
        wanted = rows_of_step(self.batch_size, step, rows)
        return np.array([self._sample(step, int(row)) for row in wanted], np.int64)

    def _sample(self, step: int, row: int) -> int:
        lane = row % self.lanes
        position = step * (self.batch_size // self.lanes) + row // self.lanes
        epoch, position = divmod(position, self._lengths[lane])
        return self._visits(lane, epoch).sample(position)

    def _visit(self, lane: int, epoch: int) -> _Visit:
        of_lane = self._of_lane[lane]
        draw = np.random.RandomState([self._seed, lane, epoch & 0xFFFFFFFF, _VISIT])
        shards = of_lane[draw.permutation(len(of_lane))]
        counts = self._shards.counts[shards]
        key = self._seed, _MIX, lane, epoch
        return _Visit(key, self._shards.firsts[shards], np.cumsum(counts))


class _Visit:
    """One epoch of a lane: its shards in order, and how far the samples of each reach."""

    def __init__(self, key: tuple[int, ...], firsts: Indices, ends: Indices) -> None:
        self._key, self._firsts, self._ends = key, firsts, ends
        self._window_ends = ends[WINDOW - 1 :: WINDOW].tolist()
        if len(ends) % WINDOW:
            self._window_ends.append(int(ends[-1]))
        self._mixed: dict[int, Permutation] = {}

    def sample(self, position: int) -> int:
        """The number of the sample at a position of the epoch."""
        window = bisect.bisect_right(self._window_ends, position)
        start = self._window_ends[window - 1] if window else 0
        mixed = self._mixed.get(window)
        if mixed is None:
            count = self._window_ends[window] - start
            mixed = Permutation(count, *self._key, window)
            self._mixed = {window: mixed}  # a lane is in one window at a time
        place = start + mixed(position - start)
        shard = int(np.searchsorted(self._ends, place, "right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return int(self._firsts[shard]) + place - before


class UniformPlan:
    """See above."""

    def __init__(self, shards: _Shards, batch_size: int, seed: int) -> None:
        check_plan(batch_size, seed)
        self.batch_size = batch_size
        self._seed, self._firsts, self._ends = seed, shards.firsts, np.cumsum(shards.counts)
        self._epoch = lru_cache(maxsize=4)(self._order)

    def indices(self, step: int, rows: Sequence[int] | Indices | None = None) -> Indices:
        """Data set indices (int64) of some rows of `step`, by default all."""
        count = int(self._ends[-1])
        places: list[int] = []
        for row in rows_of_step(self.batch_size, step, rows):
            epoch, position = divmod(step * self.batch_size + int(row), count)
            places.append(self._epoch(epoch)(position))
        shards = np.searchsorted(self._ends, places, "right")
        before = np.concatenate([[0], self._ends])[shards]
        return self._firsts[shards] + np.asarray(places, np.int64) - before

    def _order(self, epoch: int) -> Permutation:
        return Permutation(int(self._ends[-1]), self._seed, _SPREAD, epoch)


def _dealt(counts: Indices, batch_size: int, seed: int, lanes: int | None) -> list[Indices]:
    """The shards of each lane: the largest first, to and fro, so that lanes get equally long.

    counts: samples of each shard. Shards of one size are dealt by the seed.
    """
    shuffled = np.random.RandomState([seed, 0, _DEAL]).permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    most = min(MAX_LANES, len(counts), batch_size)
    divisors = [count for count in range(most, 0, -1) if batch_size % count == 0]
    if lanes is not None and lanes not in divisors:
        raise DataError(f"lanes: expected one of {divisors}, got {lanes}.")
    for count in divisors if lanes is None else [lanes]:
        dealt = [_to_and_fro(order, lane, count) for lane in range(count)]
        lengths = np.array([counts[some].sum() for some in dealt])
        if lanes is not None or np.ptp(lengths) <= MAX_UNEVEN * lengths.mean():
            return dealt
    raise AssertionError("one lane is as long as itself")


def _to_and_fro(order: Indices, lane: int, lanes: int) -> Indices:
    """What a lane gets if one after the other gets one, from the first to the last and back."""
    rounds = -(-len(order) // (2 * lanes))
    turns = np.arange(rounds)[:, None] * 2 * lanes + np.array([lane, 2 * lanes - 1 - lane])
    places = turns.reshape(-1)
    return order[places[places < len(order)]]
