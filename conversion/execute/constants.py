"""The constants of a function: every weight and setting its operations read, decoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from .blob import WeightFile
from .compressed import Value, decode
from .errors import ExecutionError
from .graph import BlobReference, Function, Literal, Operation
from .liveness import last_uses
from .packed import Packed
from .values import round_to_fp16, to_tensor

INDICES = ("uint1", "uint2", "uint3", "uint4", "uint6", "uint8")  # left packed for a palette

OpenFile = Callable[[str], WeightFile]


def load_constants(function: Function, open_file: OpenFile, fp16: bool) -> dict[str, Tensor | str]:
    """Constants by name, as tensors or text, without those that are only parts of other constants.

    Args:
        fp16: round fp16-typed values to fp16. Stored numbers already are; products are not.

    Raises ExecutionError for weights that are damaged or contradict their declaration.
    """
    wanted = {n for o in function.operations if not o.is_constant for n in o.reads}
    wanted.update(function.outputs)
    last = last_uses(function)
    parts: dict[str, Value] = {}
    out: dict[str, Tensor | str] = {}
    for index, operation in enumerate(function.operations):
        if not operation.is_constant:
            continue
        inputs = {k: _part(v, parts, open_file, operation) for k, v in operation.inputs.items()}
        for (name, kind), value in zip(operation.outputs, decode(operation, inputs), strict=True):
            if name in wanted:
                inexact = fp16 and kind.dtype == "fp16" and not _is_stored(operation, inputs)
                out[name] = _finish(value, inexact)
            if last.get(name, index) > index:
                parts[name] = value
        for name in operation.reads:
            if last.get(name) == index:
                parts.pop(name, None)
    return out


def literal_value(literal: Literal, open_file: OpenFile) -> Value:
    """The text or the numbers of a literal, in their stored type. Raises ExecutionError."""
    if not isinstance(literal.value, BlobReference):
        return literal.value
    kind, blob = literal.type, literal.value
    if kind.dtype in INDICES:
        return open_file(blob.file).read_packed(blob.offset, kind.dtype, kind.shape)
    return open_file(blob.file).read(blob.offset, kind.dtype, kind.count).reshape(kind.shape)


def _part(
    bindings: tuple[str | Literal, ...],
    parts: dict[str, Value],
    open_file: OpenFile,
    operation: Operation,
) -> Value:
    binding = bindings[0] if len(bindings) == 1 else None
    if isinstance(binding, Literal):
        return literal_value(binding, open_file)
    if binding is None or binding not in parts:
        raise ExecutionError(f"{operation.label}: is made from a value that is not a constant.")
    return parts[binding]


def _is_stored(operation: Operation, inputs: Mapping[str, Value]) -> bool:
    """Whether the package stores all numbers of a constant as fp16, with no product to compute."""
    parameter = {"const": "val", "constexpr_lut_to_dense": "lut"}.get(operation.kind, "")
    stored = inputs.get(parameter)
    return isinstance(stored, np.ndarray) and stored.dtype == np.float16


def _finish(value: Value, rounded: bool) -> Tensor | str:
    if isinstance(value, str):
        return value
    tensor = to_tensor(value.unpack() if isinstance(value, Packed) else value)
    return round_to_fp16(tensor, owned=False) if rounded else tensor
