"""Splits a package that is too large for a device into two that run one after the other.

Input: a package and a place to cut. Output: two packages, each with the weights of its own
operations. Ordinary features pass between them, wired by name like all others.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConversionError
from ..execute import Package
from ..execute.graph import Function, Operation
from ..execute.liveness import last_uses
from .cost import stored_bytes, value_types
from .program_file import read_model, rename_values, save_program
from .seal import package_size, seal_package

_FLOAT16 = 65552  # Core ML's code for it in feature descriptions


@dataclass(frozen=True)
class CutPoint:
    """A place after operation `index` where few bytes pass from one half to the other.

    share: the fraction of the weights' bytes before it.
    """

    index: int
    operation: str
    tensors: int
    crossing_bytes: int
    share: float


def best_cut(package: Package) -> int:
    """The operation after which the fewest bytes cross, among cuts that about halve the weights.

    Raises ConversionError if there is none.
    """
    points = cut_points(package.function())
    if not points:
        raise ConversionError(
            f"{package.path.name}: cannot be split, because one weight is most of it; raise "
            "--max-package-mb or palettize it."
        )
    return points[0].index


def cut_points(function: Function, lowest: float = 0.35, highest: float = 0.65) -> list[CutPoint]:
    """The three cheapest places to cut a function that about halve its weights."""
    kinds, last = value_types(function), last_uses(function)
    constant = {n for o in function.operations if o.is_constant for n, _ in o.outputs}
    size = {n: stored_bytes(o) for o in function.operations if o.is_constant for n, _ in o.outputs}
    total = max(1, sum(size.values()))
    live = {name for name in function.inputs if name in last}
    before, seen = 0, set[str]()
    found: list[CutPoint] = []
    for index, operation in enumerate(function.operations):
        if operation.is_constant:
            continue
        used = operation.reads
        stored = used & constant
        before += sum(size[n] for n in stored - seen)
        seen |= stored
        live |= {name for name, _ in operation.outputs}
        live = {n for n in live if last.get(n, len(function.operations)) > index}
        share = before / total
        if lowest <= share <= highest:
            crossing = sum(kinds[n].bytes for n in live if n not in function.inputs)
            carried = [n for n in live if n not in function.inputs]
            found.append(CutPoint(index, operation.name, len(carried), crossing, share))
    return sorted(found, key=lambda c: (c.crossing_bytes, abs(c.share - 0.5), c.index))[:3]


def split_to_fit(folder: Path, name: str, limit_mb: float, license_text: str | None) -> list[str]:
    """Split the package `name` in `folder` until no piece exceeds the limit.

    Returns the names in running order: `name` itself if it is small enough, else <name>_1 and
    <name>_2, which are split in turn.
    """
    path = folder / f"{name}.mlpackage"
    if package_size(path) <= limit_mb * 1e6:
        return [name]
    pieces = [f"{name}_1", f"{name}_2"]
    first, second = (folder / f"{piece}.mlpackage" for piece in pieces)
    split_package(path, first, second, best_cut(Package.open(path)), f"cut_{name}")
    shutil.rmtree(path)
    for piece in pieces:
        seal_package(folder / f"{piece}.mlpackage", piece, license_text)
    return [p for piece in pieces for p in split_to_fit(folder, piece, limit_mb, license_text)]


def split_package(source: Path, first: Path, second: Path, after: int, prefix: str) -> None:
    """Write all operations up to and including `after` to `first`, the rest to `second`.

    Args:
        prefix: features that pass between the two are called <prefix>_0, <prefix>_1 ...

    Raises ConversionError for a package with several functions.
    """
    package = Package.open(source)
    if len(package.functions) > 1:
        raise ConversionError(f"{source.name}: has several functions and cannot be split.")
    function = package.function()
    early, late = function.operations[: after + 1], function.operations[after + 1 :]
    passing = _passing(function, early, late)
    # a value that is already an output keeps its name
    inner = [name for name in passing if name not in function.outputs]
    renamed = {name: f"{prefix}_{k}" for k, name in enumerate(inner)}
    for target, half, is_first in ((first, early, True), (second, late, False)):
        message = read_model(source)
        _keep(message, package, half, passing, renamed, is_first)
        save_program(package, message, target)


def _passing(
    function: Function, early: tuple[Operation, ...], late: tuple[Operation, ...]
) -> list[str]:
    """Names of computed values that cross the cut, in the order of computation."""
    read = {name for operation in late for name in operation.reads}
    made = [n for o in early if not o.is_constant for n, _ in o.outputs]
    return [name for name in made if name in read]


def _keep(
    message: Any,
    package: Package,
    half: tuple[Operation, ...],
    passing: list[str],
    renamed: dict[str, str],
    is_first: bool,
) -> None:
    """Reduce a program to one half of its operations and the constants they read."""
    function = package.function()
    types = dict(function.inputs) | {n: k for o in function.operations for n, k in o.outputs}
    computed = [o for o in half if not o.is_constant]
    wanted = _with_constants(function, {n for o in computed for n in o.reads})
    stored = {n for o in function.operations if o.is_constant for n, _ in o.outputs} & wanted
    made = {n for o in computed for n, _ in o.outputs}
    inputs = [n for n in function.inputs if n in wanted] + ([] if is_first else passing)
    outputs = [n for n in function.outputs if n in made]
    outputs += [n for n in passing if n not in outputs] if is_first else []

    program = message.mlProgram.functions[function.name]
    block = program.block_specializations[program.opset]
    kept = [o for o in block.operations if any(out.name in made | stored for out in o.outputs)]
    described = {f.name: f for f in (*message.description.input, *message.description.output)}
    features = {
        n: described[n] if n in described else _feature(message, renamed[n], types[n].shape)
        for n in (*inputs, *outputs)
    }
    input_types = {i.name: i for i in program.inputs}
    output_types = {out.name: out for o in block.operations for out in o.outputs}
    new_inputs = [_copy(input_types.get(n) or output_types[n]) for n in inputs]
    kept, chosen = [_copy(o) for o in kept], {n: _copy(f) for n, f in features.items()}
    for repeated, values in (
        (program.inputs, new_inputs),
        (block.operations, kept),
        (message.description.input, [chosen[n] for n in inputs]),
        (message.description.output, [chosen[n] for n in outputs]),
    ):
        del repeated[:]
        repeated.extend(values)
    del block.outputs[:]
    block.outputs.extend(outputs)
    _rename(program, block, renamed)


def _with_constants(function: Function, names: set[str]) -> set[str]:
    """`names`, and the constants that the constants among them are made from."""
    makers = {n: o for o in function.operations if o.is_constant for n, _ in o.outputs}
    pending, out = list(names), set(names)
    while pending:
        maker = makers.get(pending.pop())
        fresh = maker.reads - out if maker else frozenset[str]()
        out |= fresh
        pending += fresh
    return out


def _feature(message: Any, name: str, shape: tuple[int, ...]) -> Any:
    feature = type(message.description.output[0])()
    feature.name = name
    feature.type.multiArrayType.shape.extend(shape)
    feature.type.multiArrayType.dataType = _FLOAT16
    return feature


def _rename(program: Any, block: Any, names: dict[str, str]) -> None:
    for value in program.inputs:
        value.name = names.get(value.name, value.name)
    for operation in block.operations:
        rename_values(operation, names)
    outputs = [names.get(name, name) for name in block.outputs]
    del block.outputs[:]
    block.outputs.extend(outputs)


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
