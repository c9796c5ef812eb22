"""Palettes for many stored weights, spread over processes.

Weights are processed in batches, because the palette search handles many groups of numbers at once.
Each process reads its batch from the weight file and returns it packed, so that little data passes
between processes. Results do not depend on the batches or on the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..execute.blob import WeightFile, unpack
from ..package_file.weightfile import pack
from .histogram import Halves
from .kmeans import Palette, palettes_of

BATCH_GROUPS = 128
BATCH_ELEMENTS = 1 << 23
WORTH_A_PROCESS = 1 << 24  # numbers; starting a process takes as long as palettizing these
MOST_PROCESSES = 8

Place = tuple[Path, int]  # of numbers in a weight file, and their offset


@dataclass(frozen=True)
class Job:
    """A weight to palettize: its place, and how many channels along `axis` share a palette.

    group: None for a single palette.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    axis: int
    group: int | None
    bits: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def groups(self) -> int:
        return 1 if self.group is None else self.shape[self.axis] // self.group


@dataclass(frozen=True)
class PackedPalettes:
    """values (groups, 2^bits) fp16, groups along `axis`; indices packed, in the weight's order."""

    values: Halves
    indices: NDArray[np.uint8]
    axis: int
    bits: int
    squared_error: float
    squared_sum: float

    def dense(self, shape: tuple[int, ...]) -> Halves:
        """The weight they encode, in its own shape."""
        indices = unpack(self.indices, f"uint{self.bits}", int(np.prod(shape))).reshape(shape)
        first = np.swapaxes(indices, 0, self.axis)
        rows = first.reshape(len(self.values), -1).astype(np.intp)
        dense = np.take_along_axis(self.values, rows, axis=1).reshape(first.shape)
        return np.ascontiguousarray(np.swapaxes(dense, 0, self.axis))


def default_processes(elements: int) -> int:
    """One process per processor available to this one, but no more than the work justifies."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, MOST_PROCESSES, elements // WORTH_A_PROCESS))


def run_jobs(
    jobs: Sequence[Job],
    processes: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[PackedPalettes]:
    """The palettes of each job, in order. Raises ConversionError for weights that are not finite.

    Args:
        processes: None chooses by the work and the available processors.
    """
    elements = sum(job.elements for job in jobs)
    processes = processes or default_processes(elements)
    order = sorted(range(len(jobs)), key=lambda i: (-jobs[i].elements, i))
    batches = list(_batches(jobs, order))
    done: dict[int, PackedPalettes] = {}
    share = 0
    for batch, results in zip(batches, _run(jobs, batches, processes), strict=True):
        done.update(zip(batch, results, strict=True))
        share += sum(jobs[i].elements for i in batch)
        if len(batches) > 1:
            say(f"{100 * share // elements} % of {elements / 1e6:.0f} M weights")
    return [done[i] for i in range(len(jobs))]


def _batches(jobs: Sequence[Job], order: list[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    groups = elements = 0
    for i in order:
        if batch and (
            groups + jobs[i].groups > BATCH_GROUPS or elements + jobs[i].elements > BATCH_ELEMENTS
        ):
            yield batch
            batch, groups, elements = [], 0, 0
        batch.append(i)
        groups, elements = groups + jobs[i].groups, elements + jobs[i].elements
    if batch:
        yield batch


def _run(
    jobs: Sequence[Job], batches: list[list[int]], processes: int
) -> Iterator[list[PackedPalettes]]:
    work = [[jobs[i] for i in batch] for batch in batches]
    if processes == 1 or len(batches) == 1:
        yield from map(palettize_batch, work)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    with ProcessPoolExecutor(min(processes, len(work)), context) as pool:
        yield from pool.map(palettize_batch, work)


def palettize_batch(jobs: Sequence[Job]) -> list[PackedPalettes]:
    """The palettes of jobs with the same number of bits, computed together."""
    files = {file: WeightFile(file) for file in {job.file for job in jobs}}
    rows = [_rows(job, files[job.file]) for job in jobs]
    out: list[PackedPalettes] = []
    for bits in sorted({job.bits for job in jobs}):
        mine = [i for i, job in enumerate(jobs) if job.bits == bits]
        palettes = iter(palettes_of([row for i in mine for row in rows[i]], bits))
        out += [_joined(jobs[i], [next(palettes) for _ in rows[i]]) for i in mine]
    order = sorted(range(len(jobs)), key=lambda i: (jobs[i].bits, i))
    return [out[order.index(i)] for i in range(len(jobs))]


def _rows(job: Job, file: WeightFile) -> Halves:
    """The numbers of a weight, one row per group."""
    weight = file.read(job.offset, "fp16", job.elements).reshape(job.shape)
    return np.ascontiguousarray(np.swapaxes(weight, 0, job.axis)).reshape(job.groups, -1)


def _joined(job: Job, palettes: list[Palette]) -> PackedPalettes:
    shape = list(job.shape)
    shape[0], shape[job.axis] = shape[job.axis], shape[0]
    indices = np.stack([p.indices for p in palettes]).reshape(shape)
    return PackedPalettes(
        np.stack([p.values for p in palettes]),
        pack(np.ascontiguousarray(np.swapaxes(indices, 0, job.axis)).reshape(-1), job.bits),
        job.axis,
        job.bits,
        sum(p.squared_error for p in palettes),
        sum(p.squared_sum for p in palettes),
    )
