"""The executor against plain eager torch, on a core package rewritten for the Neural Engine.

Both run the same module in the same process with the same threads. The package is made once per
working folder, which takes seconds for the embedded model and minutes for the official one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Row, in_turn, weights_hash
from mdm_apple.bundled_models import EMOJI
from mdm_apple.config.presets import preset
from mdm_apple.config.types import ExecutorPrecision
from mdm_apple.conversion.compress.palette_jobs import Job, run_jobs
from mdm_apple.conversion.compress.replace import replace_weights
from mdm_apple.conversion.compress.settings import Setting, refusal
from mdm_apple.conversion.convert import convert_part
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.layouts.nested import nested_parts
from mdm_apple.conversion.layouts.parts import Part
from mdm_apple.conversion.package_file.weights import weights_of
from mdm_apple.conversion.source.model import ModelSource, load_source, random_source

SETTING = Setting(4, group=16)


def execute(precision: ExecutorPrecision) -> Callable[[int, Path], Row]:
    """The 64 px core of mdm64 with random weights."""
    return lambda repetitions, work: _measure(
        "64 px core", _core_of(_mdm64(), work / "core.mlpackage"), precision, repetitions
    )


def execute_emoji(repetitions: int, work: Path) -> Row:
    """The innermost network of the embedded model."""
    core = _core_of(load_source(EMOJI), work / "emoji-core.mlpackage")
    return _measure("emoji core", core, "fp16", repetitions)


def opening(repetitions: int, work: Path) -> Row:
    """Opening and loading the core at 4 bits, next to its fp16 package."""
    _, fp16 = _core_of(_mdm64(), work / "core.mlpackage")
    small = fp16.with_name("core-4.mlpackage")
    if not small.exists():
        _palettize(fp16, small)
    mine, its = in_turn(lambda: _open(small), lambda: _open(fp16), repetitions=repetitions)
    return Row("open the core, 4 bits", mine, "in fp16", its)


def _measure(
    what: str, core: tuple[Part, Path], precision: ExecutorPrecision, repetitions: int
) -> Row:
    part, package = core
    inputs = random_inputs(part.inputs)
    return compare(part.module, inputs, package, precision, repetitions, what)


def compare(
    module: nn.Module,
    inputs: Mapping[str, NDArray[np.float32]],
    package: Path,
    precision: ExecutorPrecision,
    repetitions: int,
    what: str = "package",
) -> Row:
    """One call of a package next to the eager module, which takes the inputs in the same order."""
    program = Package.open(package).load(precision=precision)
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    wanted: list[Tensor] = []
    got: list[NDArray[np.float32]] = []

    def run_ours() -> None:
        got[:] = program(dict(inputs)).values()

    def run_torch() -> None:
        with torch.inference_mode():
            wanted[:] = module(*tensors)

    mine, its = in_turn(run_ours, run_torch, repetitions=repetitions)
    difference = max(
        float(np.abs(g - w.numpy()).max() / w.abs().max()) for g, w in zip(got, wanted, strict=True)
    )
    name = f"executor, {what}, {precision}"
    sha256 = weights_hash(module)
    return Row(name, mine, "eager torch", its, difference, model_sha256=sha256)


def random_inputs(examples: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Normal numbers in fp16 range, in the shapes of the examples; the mask stays open."""
    random = np.random.RandomState(0)
    out: dict[str, NDArray[np.float32]] = {}
    for name, example in examples.items():
        values = random.standard_normal(tuple(example.shape)).astype(np.float16).astype(np.float32)
        out[name] = np.zeros_like(values) if name == "attention_mask" else values
    return out


def _mdm64() -> ModelSource:
    return random_source(preset("mdm64"), 0, with_encoder=False)


def _core_of(source: ModelSource, path: Path) -> tuple[Part, Path]:
    """The part with most of the weights, and its package at `path`, made if it is absent."""
    part = max(
        nested_parts(source, "ane"), key=lambda p: sum(w.numel() for w in p.module.parameters())
    )
    if not path.exists():
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
