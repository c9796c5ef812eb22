"""Training batches that depend only on (seed, step): not on workers, ranks or where a run resumed.

Input: captioned `Pictures` and the settings of the draws. Output: pictures, captions,
micro-conditions, timesteps and noise of a step, as numpy arrays for either backend.

Order. The pictures of all epochs form one endless stream, epoch after epoch; step s takes the
positions from s * batch_size on, so a batch may span two epochs and none is cut short. Epoch e is
`RandomState([seed, e, 1]).permutation`, which NumPy guarantees never to change.

Draws. Row r of step s reads Philox with key [seed, 0] and counter [0, stream, r, s]: stream 0 for
caption dropout and timestep, stream 1 + k for the noise of level k counted from the innermost,
stream 2**32 for a picture that differs from row to row.
Blocks of different rows never meet, so any rows can be drawn without the others.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Protocol

import numpy as np

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Floats, Indices
from mdm_apple.data.dataset import DataError, Pictures
from mdm_apple.diffusion.noise import CHANNELS, MAX_SEED
from mdm_apple.diffusion.pixel_range import training_range

_PICTURE = 1 << 32  # the stream of pictures; no model has so many levels
_ORDER, _HELD_OUT = 1, 2  # third words of the RandomState seeds


@dataclass(frozen=True)
class Batch:
    """Some rows of one step.

    images: float32 (B, 3, side, side) in [-1, 1 + white_headroom]. captions: B, empty where dropped
    for guidance.
    micros: "scale" (B,) float32, in pixels. indices: int64 (B,) into the data set.
    times: int64 (B,) in [0, num_steps): the network's input; the table index is one more.
    noise: standard normal float32 (B, 3, side, side) per level, highest first.
    whole: B, the captions before any was dropped; None if none was.
    """

    images: Floats
    captions: list[str]
    micros: dict[str, Floats]
    indices: Indices
    times: Indices
    noise: list[Floats]
    whole: list[str] | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows from start to stop, as views: the parts of an accumulated step."""
        part = slice(start, stop)
        return Batch(
            self.images[part],
            self.captions[part],
            {name: values[part] for name, values in self.micros.items()},
            self.indices[part],
            self.times[part],
            [level[part] for level in self.noise],
            None if self.whole is None else self.whole[part],
        )


@dataclass(frozen=True)
class Draws:
    """Settings of the random draws for a row, besides its picture.

    sides: pixels of each level, highest first. caption_dropout: share of captions emptied.
    diffusion: its num_steps, high_noise_share and high_noise_start decide the timesteps.
    white_headroom: pure white pixels become 1 + this. Finished pictures are clipped to [-1, 1], so
    small errors around this value vanish and plain backgrounds come out plain.
    """

    seed: int
    sides: tuple[int, ...]
    diffusion: DiffusionConfig
    caption_dropout: float = 0.0
    white_headroom: float = 0.0

    def __post_init__(self) -> None:
        in_range("seed", self.seed, 0, MAX_SEED, error=DataError)
        if not self.sides or min(self.sides) < 1:
            raise DataError(f"sides: expected pixels per level, got {self.sides}.")
        in_range("caption_dropout", self.caption_dropout, 0, 1, error=DataError)
        in_range("white_headroom", self.white_headroom, 0, 1, below=True, error=DataError)


class Plan(Protocol):
    """Which pictures each step sees."""

    @property
    def batch_size(self) -> int: ...

    def indices(self, step: int, rows: Sequence[int] | Indices | None = None) -> Indices:
        """Data set indices (int64) of some rows of `step`, by default all."""
        ...


class BatchPlan:
    """Which pictures each step sees.

    Args:
        dataset_len: number of pictures. batch_size: for the whole step, over all ranks.
        seed: 0 to 2**32 - 1. held_out: indices that no step sees; see `validation_rows`.
    """

    def __init__(
        self, dataset_len: int, batch_size: int, seed: int, held_out: Sequence[int] | Indices = ()
    ) -> None:
        check_plan(batch_size, seed)
        self.batch_size = batch_size
        self.seed = seed
        self._pool = np.setdiff1d(np.arange(dataset_len), np.asarray(held_out, np.int64))
        if not len(self._pool):
            raise DataError(
                f"expected pictures to train on, got {dataset_len} of which {len(held_out)} are "
                "held out; add pictures or hold out fewer."
            )

    @property
    def epoch_len(self) -> int:
        """Pictures in an epoch."""
        return len(self._pool)

    def indices(self, step: int, rows: Sequence[int] | Indices | None = None) -> Indices:
        """Data set indices (int64) of some rows of `step`, by default all."""
        positions = step * self.batch_size + rows_of_step(self.batch_size, step, rows)
        epochs, within = np.divmod(positions, self.epoch_len)
        chosen = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            chosen[rows] = _epoch_order(self.epoch_len, self.seed, int(epoch))[within[rows]]
        return self._pool[chosen]

    def seen(self, steps: int) -> set[int]:
        """Data set indices of all rows of the first `steps` steps."""
        count = min(steps * self.batch_size, self.epoch_len)
        first = _epoch_order(self.epoch_len, self.seed, 0)[:count]
        return {int(index) for index in self._pool[first]}


def check_plan(batch_size: int, seed: int) -> None:
    """Refuse what no plan can have. Raises DataError."""
    in_range("seed", seed, 0, MAX_SEED, error=DataError)
    in_range("batch_size", batch_size, 1, error=DataError)


def rows_of_step(batch_size: int, step: int, rows: Sequence[int] | Indices | None) -> Indices:
    """The rows asked for, by default all. Raises DataError for rows that no step has."""
    wanted = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if step < 0 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < batch_size):
        raise DataError(
            f"rows: expected some of the {batch_size} rows of a step from 0 on, got "
            f"{wanted.tolist()} of step {step}."
        )
    return wanted


def validation_rows(n: int, share: float, seed: int) -> Indices:
    """Indices held out of n pictures, ascending: round(n * share), at least 1 unless share is 0."""
    in_range("seed", seed, 0, MAX_SEED, error=DataError)
    in_range("validation share", share, 0, 1, below=True, error=DataError)
    count = max(1, round(n * share)) if share else 0
    if count >= n > 0:
        raise DataError(f"validation share: {share} of {n} pictures leaves none to train on.")
    order = np.random.RandomState([seed, 0, _HELD_OUT]).permutation(n)
    return np.sort(order[:count]).astype(np.int64)


def make_batch(
    dataset: Pictures,
    indices: Sequence[int] | Indices,
    draws: Draws,
    step: int,
    rows: Sequence[int] | Indices | None = None,
) -> Batch:
    """Read the pictures at `indices` and draw for these rows of `step`, by default 0, 1, ...

    Raises DataError if a picture cannot be read.
    """
    if dataset.side != draws.sides[0]:
        raise DataError(
            f"sides: the data set was opened with {dataset.side} px, the model wants "
            f"{draws.sides[0]}; open it with that side."
        )
    count = len(indices)
    images = np.empty((count, CHANNELS, dataset.side, dataset.side), np.float32)
    captions, whole = list[str](), list[str]()
    scale = np.empty(count, np.float32)
    times = np.empty(count, np.int64)
    noise = [np.empty((count, CHANNELS, side, side), np.float32) for side in draws.sides]
    stream = RowStream(draws.seed)
    numbers = range(count) if rows is None else rows
    for row, (number, index) in enumerate(zip(numbers, indices, strict=True)):
        item = dataset.drawn(int(index), stream.at(_PICTURE, int(number), step))
        images[row] = item.image.transpose(2, 0, 1)
        scale[row] = item.scale
        uniform = stream.at(0, int(number), step).random(3)
        whole.append(item.caption)
        captions.append("" if uniform[0] < draws.caption_dropout else item.caption)
        times[row] = _timestep(draws.diffusion, uniform[1], uniform[2])
        for place, level in enumerate(noise):
            normal = stream.at(len(noise) - place, int(number), step)
            normal.standard_normal(dtype=np.float32, out=level[row])
    training_range(images, 1, draws.white_headroom)
    picked = np.asarray(indices, np.int64)
    return Batch(images, captions, {"scale": scale}, picked, times, noise, whole)


class Loader:
    """Batches of the steps from `start_step` on, made ahead of time by a few threads.

    Iterate over it, then close it or use it in `with`; none of its threads is left afterwards. An
    exception in a worker is raised at the step it belongs to, and ends the loader.

    Args:
        rows: the rows of each step that this process takes, in order; None for all.
        start_step: number of steps done; the only state to save. stop_step: None for no end.
        workers: threads, each making one batch at a time; 0 makes batches on request.
    """

    def __init__(
        self,
        dataset: Pictures,
        plan: Plan,
        draws: Draws,
        *,
        rows: Sequence[int] | Indices | None = None,
        start_step: int = 0,
        stop_step: int | None = None,
        workers: int = 1,
    ) -> None:
        in_range("workers", workers, 0, error=DataError)
        self._dataset, self._plan, self._draws = dataset, plan, draws
        self._rows = np.arange(plan.batch_size) if rows is None else np.asarray(rows, np.int64)
        plan.indices(start_step, self._rows)  # refuses impossible rows here, not in a thread
        ahead = itertools.count(start_step)
        self._ahead = ahead if stop_step is None else iter(range(start_step, stop_step))
        self._depth = workers + 1
        self._pending: deque[Future[Batch]] = deque()
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            if self._pool is None:
                return self._make(next(self._ahead))
            for step in itertools.islice(self._ahead, self._depth - len(self._pending)):
                self._pending.append(self._pool.submit(self._make, step))
            if not self._pending:
                raise StopIteration
            return self._pending.popleft().result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the threads and wait for them; a closed loader yields nothing more."""
        self._ahead = iter(())
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make(self, step: int) -> Batch:
        indices = self._plan.indices(step, self._rows)
        return make_batch(self._dataset, indices, self._draws, step, self._rows)


class RowStream:
    """Random numbers addressed by (stream, row, step), from one generator that is repositioned."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=[seed, 0])
        self._fresh = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, stream: int, row: int, step: int) -> np.random.Generator:
        """The generator at the start of a block; it stays valid until the next call."""
        self._fresh["state"]["counter"][:] = (0, stream, row, step)
        self._bits.state = self._fresh  # buffers are emptied too: nothing of the last block is left
        return self._generator


def _timestep(diffusion: DiffusionConfig, branch: float, position: float) -> int:
    """An index in [0, num_steps) from two uniforms in [0, 1)."""
    total = diffusion.schedule.num_steps
    high = branch < diffusion.high_noise_share
    low = int(diffusion.high_noise_start * total) if high else 0
    return low + int(position * (total - low))


@lru_cache(maxsize=4)  # a batch spans two epochs at most, unless it is larger than an epoch
def _epoch_order(length: int, seed: int, epoch: int) -> Indices:
    order = np.random.RandomState([seed, epoch, _ORDER]).permutation(length).astype(np.int64)
    order.flags.writeable = False
    return order
