"""How a batch is shared: the rows that each process takes, in the parts that fit its memory.

Part p of n takes the rows p, p + n, p + 2n, ... of the batch, so the first rows of the whole batch,
which more levels of a mixed batch see, are the first rows of every part. Parts may differ by a row.
The loss of a batch is the sum over its rows divided by their number, however it is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.config.types import Indices
from mdm_apple.errors import ConfigError
from mdm_apple.training.settings import TrainConfig


@dataclass(frozen=True)
class Part:
    """Some rows of a batch that are processed together.

    rows: their numbers in the whole batch, ascending; at least one. batch_size: of the whole batch.
    count: of the parts, over all processes.
    """

    rows: Indices
    batch_size: int
    count: int

    @property
    def weight(self) -> float:
        """Rows of this part, as a multiple of the mean over all parts; exactly 1 if even."""
        return len(self.rows) * self.count / self.batch_size

    def seen(self, fractions: Sequence[float]) -> list[int]:
        """How many rows of this part each level sees: it sees the first ones of the whole batch."""
        return [int(np.searchsorted(self.rows, n)) for n in self.seen_of_batch(fractions)]

    def seen_of_batch(self, fractions: Sequence[float]) -> list[int]:
        return [int(fraction * self.batch_size) for fraction in fractions]

    def mean_seen(self, fractions: Sequence[float]) -> list[float]:
        """The mean over all parts of what `seen` returns; 1 for a level that sees nothing."""
        return [n / self.count or 1.0 for n in self.seen_of_batch(fractions)]


def whole(rows: int) -> Part:
    """A batch as its only part."""
    return Part(np.arange(rows), rows, 1)


def parts_of(config: TrainConfig, rank: int, world: int) -> list[Part]:
    """The parts of a process, in order: `config.accumulate`, or fewer if they have no rows.

    Raises ConfigError for more processes than rows.
    """
    size, count = config.batch_size, world * config.accumulate
    if world > size:
        raise ConfigError(
            f"batch_size: expected a row or more for each of {world} processes, got {size}; raise "
            "it, or start fewer processes."
        )
    firsts = [rank + world * k for k in range(config.accumulate)]
    return [Part(np.arange(first, size, count), size, count) for first in firsts if first < size]


def rows_of(config: TrainConfig, rank: int, world: int) -> Indices:
    """Rows of the whole batch that a process takes, in the order of its parts."""
    return np.concatenate([part.rows for part in parts_of(config, rank, world)])


def most_rows(config: TrainConfig, world: int = 1) -> int:
    """Rows of the largest part, which are in memory together."""
    return -(-config.batch_size // (world * config.accumulate))


def check_parts(config: TrainConfig, diffusion: DiffusionConfig, world: int) -> None:
    """Refuse parts of a batch whose losses do not add up to the loss of the whole batch."""
    parts_of(config, 0, world)
    shares = diffusion.mixed_fractions or (1.0,)
    if int(min(shares) * config.batch_size) < 1:
        raise ConfigError(
            f"batch_size: with this mixed_ratio a batch needs {int(np.ceil(1 / min(shares)))} "
            f"pictures or more, got {config.batch_size}."
        )
    parts = min(world * config.accumulate, config.batch_size)
    if parts > 1 and diffusion.loss_weighting == "vdm":
        raise ConfigError(
            "accumulate: loss_weighting vdm weighs each picture against the whole batch, so it "
            f"needs one process and one accumulation step, got {parts} parts."
        )
