"""Our palettes against coremltools' own: time, and squared error against the exact optimum.

The numbers are 10.6 million random weights for two 768 -> 768 3x3 convolutions, or the largest
convolutions of the embedded emoji model; 16 channels share a palette.
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

from benchmarks.harness import Measured, Row, in_turn
from mdm_apple.bundled_models import EMOJI
from mdm_apple.conversion.compress.histogram import Halves
from mdm_apple.conversion.compress.palette_jobs import Job, PackedPalettes, run_jobs
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.package_file.weightfile import WeightFileWriter
from mdm_apple.storage.tensorfile import read_tensors

SHAPE, CONVOLUTIONS, GROUP, WORKERS = (768, 768, 3, 3), 2, 16, 2
SAMPLE = 2  # groups with the exact optimum computed; seconds each at 8 bits
TRAINED = 12  # convolutions taken from the emoji model


def palettes(bits: int, kind: str = "gauss") -> Callable[[int], Row]:
    """The suite for one width. The row's difference compares the squared errors.

    Figures: how far the errors exceed the smallest possible one, over a sample of the groups.
    """

    def measure(repetitions: int) -> Row:
        convolutions = _trained() if kind == "trained" else _random(kind)
        rows = [g for w in convolutions for g in np.split(w, len(w) // GROUP)]
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

                mine, its = in_turn(run_ours, run_theirs, repetitions=repetitions)
        sample = range(SAMPLE)  # groups of the first convolution
        shape = convolutions[0].shape
        optimum = sum(exact_error(rows[k], bits) for k in sample)
        own = sum(_error(rows[k], *_own_palette(ours[0], k, shape)) for k in sample)
        their = sum(_error(rows[k], *theirs[k]) for k in sample)
        excess = [100 * (error / optimum - 1) for error in (own, their)]
        name = f"palettes, {bits} bits, {kind}"
        its = Measured(its.values)  # other processes do the work, so CPU seconds do not apply
        figures = {
            "error over the optimum, %": excess[0],
            "coremltools' error over the optimum, %": excess[1],
        }
        other = f"coremltools, {WORKERS} workers"
        return Row(name, mine, other, its, abs(own - their) / their, figures=figures)

    return measure


def exact_error(group: Halves, bits: int) -> float:
    """Squared error of the best possible palette."""
    with quiet_coremltools():
        kmeans1d = importlib.import_module("coremltools._deps").kmeans1d
    values, counts = np.unique(group, return_counts=True)
    best = kmeans1d.cluster(values.astype(float), 1 << bits, weights=counts.astype(float))
    centroids = np.array(best.centroids)[np.array(best.clusters)]
    return float(counts @ np.square(values.astype(float) - centroids))


def _random(kind: str) -> list[Halves]:
    out: list[Halves] = []
    for seed in range(CONVOLUTIONS):
        random = np.random.RandomState(seed)
        draw = random.standard_normal(SHAPE) if kind == "gauss" else random.standard_t(3, SHAPE)
        out.append((0.02 * draw).astype(np.float16))
    return out


def _trained() -> list[Halves]:
    """The largest convolutions of the embedded model that divide into groups."""
    tensors = read_tensors(EMOJI / "model.safetensors")
    fitting = [t for t in tensors.values() if t.ndim == 4 and t.shape[0] % GROUP == 0]
    fitting.sort(key=lambda t: -t.size)
    return [np.array(t, np.float16) for t in fitting[:TRAINED]]


def _jobs(folder: Path, convolutions: list[Halves], bits: int) -> list[Job]:
    file = folder / "weight.bin"
    writer = WeightFileWriter(file)
    offsets = [writer.add(w, "fp16", w.size) for w in convolutions]
    writer.close()
    return [
        Job(file, offset, w.shape, 0, GROUP, bits)
        for w, offset in zip(convolutions, offsets, strict=True)
    ]


def _stock() -> Callable[..., Any]:
    with quiet_coremltools():
        passes = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
    return passes.palettize_weights._get_lut_and_indices


def _own_palette(
    packed: PackedPalettes, k: int, shape: tuple[int, ...]
) -> tuple[Halves, NDArray[Any]]:
    from mdm_apple.conversion.execute.blob import unpack

    count = int(np.prod(shape))
    indices = unpack(packed.indices, f"uint{packed.bits}", count).reshape(shape[0] // GROUP, -1)
    return packed.values[k], indices[k]


def _error(group: Halves, values: NDArray[Any], indices: NDArray[Any]) -> float:
    found = np.asarray(values).reshape(-1)[np.asarray(indices).reshape(-1)]
    return float(np.square(group.reshape(-1).astype(float) - found.astype(float)).sum())
