"""What a backend provides for training, as a protocol: a network that learns from batches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdm_apple.data.batches import Batch
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Runtime
from mdm_apple.training.parts import Part


@dataclass(frozen=True)
class StepMetrics:
    loss: float
    level_losses: tuple[float, ...]  # unweighted squared error per level, highest first
    grad_norm: float  # before clipping
    extra: Mapping[str, float] = field(default_factory=dict[str, float])  # logged as well


class _Rows(Protocol):
    """A batch, which can be taken apart."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Self: ...


Rows = TypeVar("Rows", bound=_Rows, contravariant=True)  # noqa: PLC0105


@dataclass(frozen=True)
class Snapshot:
    """The full state for resuming a run, as NumPy arrays by name."""

    weights: Mapping[str, NDArray[np.float32]]
    ema: Mapping[str, NDArray[np.float32]] | None
    encoder: Mapping[str, NDArray[np.float32]] | None
    encoder_ema: Mapping[str, NDArray[np.float32]] | None
    optimizer: Mapping[str, NDArray[np.float32]]


class LostProcessError(MdmError):
    """Another process of this run has ended or cannot be reached.

    known: whether the weights are those of the last step. A GPU tells of a loss only later, when
    what it has computed since may be wrong.
    """

    def __init__(self, sentence: str, known: bool) -> None:
        super().__init__(sentence)
        self.known = known


class Learner(Protocol[Rows]):
    """One backend's network, optimiser and average, learning from batches of some kind."""

    rank: int
    world: int
    dropout_by_row: bool  # whether it drops something, and draws as `training.dropout` says

    def step(self, batch: Rows, index: int) -> StepMetrics:
        """One optimisation step on this process's rows."""
        ...

    def validate(self, batch: Rows) -> float:
        """Mean loss of the averaged weights on some rows, of this process alone."""
        ...

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Each number, summed over processes; every process calls this."""
        ...

    def same_everywhere(self, number: int) -> bool:
        """Whether all processes have the same number, 0 to 2**31 - 1; every process calls this."""
        ...

    def any_asked(self, asked: bool) -> bool:
        """Whether any process was asked to stop; every process calls this after each step."""
        ...

    def snapshot(self) -> Snapshot: ...

    def restore(self, snapshot: Snapshot) -> None: ...

    def averaged(self) -> AbstractContextManager[Runtime]:
        """A context in which the network has its averaged weights, for sampling."""
        ...


PictureLearner = Learner[Batch]  # learns from captioned pictures


def split_rows(batch: Rows, parts: Sequence[Part]) -> list[Rows]:
    """The rows of a process, taken apart into its parts."""
    ends = list(itertools.accumulate(len(part.rows) for part in parts))
    return [batch.rows(start, end) for start, end in itertools.pairwise([0, *ends])]
