"""Our palettes beside coremltools' own: time, and squared error against the exact optimum.

10.6 million numbers, the weights of two 768 -> 768 3x3 convolutions, 16 channels to a palette.
"""

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Pair, in_turn
from conversion.coreml import quiet_coremltools
from conversion.palette_jobs import Job, PackedPalettes, run_jobs
from conversion.weightfile import WeightFileWriter

SHAPE, CONVOLUTIONS, GROUP, WORKERS = (768, 768, 3, 3), 2, 16, 2
SAMPLE = 2  # groups of which the exact optimum is computed; seconds each at 8 bits

Halves = NDArray[np.float16]


def palettes(bits: int, kind: str = "gauss") -> Callable[[int], Pair]:
    """The suite for one width. The note gives the excess over the optimum, ours and its."""

    def measure(repetitions: int) -> Pair:
        convolutions = [_numbers(kind, seed) for seed in range(CONVOLUTIONS)]
        rows = [g for w in convolutions for g in np.split(w, SHAPE[0] // GROUP)]
        with tempfile.TemporaryDirectory() as folder:
            jobs = _jobs(Path(folder), convolutions, bits)
            with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
                stock = _stock()
                ours: list[PackedPalettes] = []
                theirs: list[Any] = []

                def run_ours() -> None:
                    ours[:] = run_jobs(jobs)

                def run_theirs() -> None:
                    theirs[:] = pool.starmap(
                        stock, zip(rows, repeat("KMEANS"), repeat(bits), repeat(None))
                    )

                times = in_turn(run_ours, run_theirs, repetitions)
        optimum = sum(exact_error(g, bits) for g in rows[:SAMPLE])
        own = sum(_error(g, *_own_palette(ours[0], k)) for k, g in enumerate(rows[:SAMPLE]))
        their = sum(_error(g, *theirs[k]) for k, g in enumerate(rows[:SAMPLE]))
        excess = [100 * (error / optimum - 1) for error in (own, their)]
        note = f"over the optimum: {excess[0]:.3f} %, its {excess[1]:.3f} %"
        name = f"palettes, {bits} bits, {kind}"
        return Pair(name, f"coremltools, {WORKERS} workers", *times, abs(own - their) / their, note)

    return measure


def exact_error(group: Halves, bits: int) -> float:
    """Squared error of the best palette there is."""
    with quiet_coremltools():
        kmeans1d = importlib.import_module("coremltools._deps").kmeans1d
    values, counts = np.unique(group, return_counts=True)
    best = kmeans1d.cluster(values.astype(float), 1 << bits, weights=counts.astype(float))
    centroids = np.array(best.centroids)[np.array(best.clusters)]
    return float(counts @ np.square(values.astype(float) - centroids))


def _numbers(kind: str, seed: int) -> Halves:
    random = np.random.RandomState(seed)
    draw = random.standard_normal(SHAPE) if kind == "gauss" else random.standard_t(3, SHAPE)
    return (0.02 * draw).astype(np.float16)


def _jobs(folder: Path, convolutions: list[Halves], bits: int) -> list[Job]:
    file = folder / "weight.bin"
    writer = WeightFileWriter(file)
    offsets = [writer.add(w, "fp16", w.size) for w in convolutions]
    writer.close()
    return [Job(file, offset, SHAPE, 0, GROUP, bits) for offset in offsets]


def _stock() -> Callable[..., Any]:
    with quiet_coremltools():
        passes = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
    return passes.palettize_weights._get_lut_and_indices


def _own_palette(packed: PackedPalettes, k: int) -> tuple[Halves, NDArray[Any]]:
    from conversion.execute.blob import unpack

    count = int(np.prod(SHAPE))
    indices = unpack(packed.indices, f"uint{packed.bits}", count).reshape(SHAPE[0] // GROUP, -1)
    return packed.values[k], indices[k]


def _error(group: Halves, values: NDArray[Any], indices: NDArray[Any]) -> float:
    found = np.asarray(values).reshape(-1)[np.asarray(indices).reshape(-1)]
    return float(np.square(group.reshape(-1).astype(float) - found.astype(float)).sum())
