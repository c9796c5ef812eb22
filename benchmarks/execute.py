"""The executor beside plain eager torch: the 64 px core, rewritten for the Neural Engine.

Both run the same module in the same process and threads. Making the package takes minutes and is
done once per process.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Pair, in_turn
from conversion.convert import convert_part
from conversion.execute import Package, Precision
from conversion.nested import nested_parts
from conversion.palette_jobs import Job, run_jobs
from conversion.parts import Part
from conversion.plan import Setting, refusal
from conversion.replace import replace_weights
from conversion.source import random_source
from conversion.weights import weights_of
from mdm_apple.presets import preset

SETTING = Setting(4, group=16)


def execute(precision: Precision) -> Callable[[int], Pair]:
    """The suite for one precision."""

    def measure(repetitions: int) -> Pair:
        part, package = _core()
        inputs = random_inputs(part.inputs)
        return compare(part.module, inputs, package, precision, repetitions)

    return measure


def opening(repetitions: int) -> Pair:
    """Opening and loading the core in 4 bits, beside its fp16 package."""
    _, fp16 = _core()
    small = fp16.with_name("core-4.mlpackage")
    if not small.exists():
        _palettize(fp16, small)
    ours, other = in_turn(lambda: _open(small), lambda: _open(fp16), repetitions)
    return Pair("open the core, 4 bits", "in fp16", ours, other, 0.0)


def compare(
    module: nn.Module,
    inputs: Mapping[str, NDArray[np.float32]],
    package: Path,
    precision: Precision,
    repetitions: int,
) -> Pair:
    """One call of a package beside the eager module, whose arguments are the inputs in order."""
    program = Package.open(package).load(precision=precision)
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    wanted: list[Tensor] = []
    got: list[NDArray[np.float32]] = []

    def run_ours() -> None:
        got[:] = program(inputs).values()

    def run_torch() -> None:
        with torch.inference_mode():
            wanted[:] = module(*tensors)

    times = in_turn(run_ours, run_torch, repetitions)
    difference = max(
        float(np.abs(g - w.numpy()).max() / w.abs().max()) for g, w in zip(got, wanted, strict=True)
    )
    return Pair(f"executor, 64 px core, {precision}", "eager torch", *times, difference)


def random_inputs(examples: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Normal numbers that fp16 can hold, in the shapes of the examples; the mask stays open."""
    random = np.random.RandomState(0)
    out: dict[str, NDArray[np.float32]] = {}
    for name, example in examples.items():
        values = random.standard_normal(tuple(example.shape)).astype(np.float16)
        out[name] = np.zeros_like(values) if name == "attention_mask" else values
        out[name] = out[name].astype(np.float32)
    return out


@cache
def _core() -> tuple[Part, Path]:
    """The part and its package, in a folder that lasts as long as the process."""
    source = random_source(preset("mdm64"), 0, with_encoder=False)
    (part,) = nested_parts(source, "ane")
    folder = Path(tempfile.mkdtemp(prefix="mdm-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "core.mlpackage"
    convert_part(part, path, "iOS18", source)
    return part, path


def _palettize(source: Path, target: Path) -> None:
    package = Package.open(source)
    weights = [w for w in weights_of(package.function()) if refusal(w, SETTING) is None]
    jobs = [
        Job(
            package.weight_path(w.stored.file),
            w.stored.offset,
            w.shape,
            w.out_axis or 0,
            SETTING.group,
            SETTING.bits,
        )
        for w in weights
    ]
    places = [(w.stored.file, w.stored.offset) for w in weights]
    replace_weights(source, target, dict(zip(places, run_jobs(jobs), strict=True)))


def _open(path: Path) -> None:
    Package.open(path).load()
