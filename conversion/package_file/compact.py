"""Stores each small constant of a program once, under a short name.

Axes, sizes and epsilons are constants too: two thirds of the operations of a network of clips. Its
graphs take a seventh of a bundle, and half of that is these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .program_file import program_path, read_model, rename_values


def compact_package(path: Path) -> None:
    """Rewrite the program of a package that was just saved; it computes the same."""
    message = read_model(path)
    for function in message.mlProgram.functions.values():
        inputs = {value.name for value in function.inputs}
        for block in function.block_specializations.values():
            _compact(block, inputs)
    program = path / "Data" / program_path(path)
    program.write_bytes(message.SerializeToString(deterministic=True))


def _compact(block: Any, inputs: set[str]) -> None:
    """Names of inputs and outputs, weights and computed values stay as they are."""
    small = [o for o in block.operations if _is_small_constant(o, block)]
    names = {o.outputs[0].name for o in small}
    fixed = inputs | {out.name for o in block.operations for out in o.outputs} - names
    short: dict[bytes, str] = {}  # by value
    for operation in small:
        short.setdefault(_content(operation), _unused(len(short), fixed))
    renamed = {o.outputs[0].name: short[_content(o)] for o in small}
    kept: list[Any] = []
    known: set[str] = set()
    for operation in block.operations:
        copy = type(operation).FromString(operation.SerializeToString())
        rename_values(copy, renamed)
        if operation.outputs and operation.outputs[0].name in names:
            name = copy.outputs[0].name
            if name in known:
                continue
            known.add(name)
            copy.attributes["name"].immediateValue.tensor.strings.values[:] = [name]
        kept.append(copy)
    del block.operations[:]
    block.operations.extend(kept)


def _is_small_constant(operation: Any, block: Any) -> bool:
    """Whether an operation holds its value itself, not in the weight file, and is no output."""
    if operation.type != "const" or operation.outputs[0].name in block.outputs:
        return False
    return operation.attributes["val"].WhichOneof("value") == "immediateValue"


def _content(operation: Any) -> bytes:
    value = operation.attributes["val"].SerializeToString(deterministic=True)
    return value + operation.outputs[0].type.SerializeToString(deterministic=True)


def _unused(number: int, fixed: set[str]) -> str:
    name = f"c{number:x}"
    while name in fixed:
        name += "_"
    return name
