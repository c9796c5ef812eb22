"""A function of a package as plain typed values: operations in order, names defined before use.

Input: the protobuf message of one function. Output: a `Function`. Features the executor cannot run
(control flow, states, flexible shapes) are refused by name. Operations get their meaning later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mdm_apple.config.types import NumpyArray

from .blob import BITS, packed_size, unpack
from .errors import ExecutionError, FlexibleShapeError

_DTYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
_MAX_RANK = 16
_HOLDERS = {"floats": "f4", "ints": "i8", "bools": "?", "longInts": "i8", "doubles": "f8"}


@dataclass(frozen=True)
class TensorType:
    """Element type (fp16, int32, uint4, bool, string ...) and fixed shape; () for a scalar."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return packed_size(self.dtype, self.count) if self.dtype in BITS else 0

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("fp")

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class BlobReference:
    """The place of a weight: a file name as the program writes it, and the offset of its record."""

    file: str
    offset: int


@dataclass(frozen=True)
class Literal:
    """A constant: its numbers, its text, or the place of its numbers."""

    type: TensorType
    value: NumpyArray | str | BlobReference


@dataclass(frozen=True)
class Operation:
    """One step: `inputs` by parameter name, each with one or several value names or literals."""

    kind: str
    name: str
    inputs: dict[str, tuple[str | Literal, ...]]
    outputs: tuple[tuple[str, TensorType], ...]

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name!r}"

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the values it reads."""
        return frozenset(b for parts in self.inputs.values() for b in parts if isinstance(b, str))

    @property
    def is_constant(self) -> bool:
        return self.kind == "const" or self.kind.startswith("constexpr_")


@dataclass(frozen=True)
class Function:
    """A callable program: inputs by name, operations in order, names of the results."""

    name: str
    inputs: dict[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


def read_function(name: str, message: Any) -> Function:
    """A `Function` from its protobuf message. Raises ExecutionError if it cannot be run."""
    block = message.block_specializations.get(message.opset)
    if block is None:
        raise ExecutionError(
            f"function {name!r}: has no block for its own opset {message.opset!r}; it is damaged."
        )
    inputs = {i.name: _tensor_type(i.type, f"input {i.name!r}") for i in message.inputs}
    known = set(inputs)
    operations: list[Operation] = []
    types: dict[bytes, TensorType] = {}
    for op in block.operations:
        operation = _read_operation(op, types)
        _check_names(operation, known)
        operations.append(operation)
    for output in block.outputs:
        if output not in known:
            raise ExecutionError(f"function {name!r}: its output {output!r} is never computed.")
    return Function(name, inputs, tuple(operations), tuple(block.outputs))


def _check_names(operation: Operation, known: set[str]) -> None:
    """Check that inputs are defined earlier and outputs are new; adds the outputs to `known`."""
    for parameter, bindings in operation.inputs.items():
        for binding in bindings:
            if isinstance(binding, str) and binding not in known:
                raise ExecutionError(
                    f"{operation.label}: its input {parameter} is {binding!r}, which is not "
                    "computed before it; the package is damaged."
                )
    for output, _ in operation.outputs:
        if output in known:
            raise ExecutionError(f"{operation.label}: computes {output!r} a second time.")
        known.add(output)


def _read_operation(op: Any, types: dict[bytes, TensorType]) -> Operation:
    """types: a cache by their bytes, because thousands of types include few distinct ones."""
    if not str(op.type).isidentifier():
        raise ExecutionError(
            f"an operation is called {str(op.type)[:40]!r}; the package is damaged."
        )
    attributes: dict[str, Any] = dict(op.attributes)
    name = _op_name(attributes.pop("name", None)) or (op.outputs[0].name if op.outputs else "")
    label = f"{op.type} {name!r}"
    if op.blocks:
        raise ExecutionError(f"{label}: control flow is not supported by this executor.")
    # const and the older constexpr operations keep their parameters among the attributes
    inputs: dict[str, tuple[str | Literal, ...]] = {
        key: (_literal(value, label),) for key, value in attributes.items()
    }
    for key, argument in op.inputs.items():
        inputs[key] = tuple(_binding(b, label) for b in argument.arguments)
    outputs: list[tuple[str, TensorType]] = []
    for output in op.outputs:
        stored = output.type.SerializeToString(deterministic=True)
        if stored not in types:
            types[stored] = _tensor_type(output.type, label)
        outputs.append((output.name, types[stored]))
    return Operation(op.type, name, inputs, tuple(outputs))


def _op_name(value: Any) -> str:
    if value is None:
        return ""
    texts = value.immediateValue.tensor.strings.values
    return str(texts[0]) if len(texts) == 1 else ""


def _binding(binding: Any, label: str) -> str | Literal:
    kind = binding.WhichOneof("binding")
    if kind == "name":
        return str(binding.name)
    if kind == "value":
        return _literal(binding.value, label)
    raise ExecutionError(f"{label}: has an input bound to nothing; the package is damaged.")


def _tensor_type(value: Any, label: str) -> TensorType:
    kind = value.WhichOneof("type")
    if kind == "stateType":
        raise ExecutionError(f"{label}: states are not supported by this executor.")
    if kind != "tensorType":
        raise ExecutionError(f"{label}: expected a tensor, got {kind}, which is not supported.")
    tensor = value.tensorType
    dtype = _DTYPES.get(tensor.dataType)
    if dtype is None:
        raise ExecutionError(f"{label}: data type {tensor.dataType} is not supported.")
    if tensor.rank != len(tensor.dimensions) or tensor.rank > _MAX_RANK:
        raise ExecutionError(
            f"{label}: rank {tensor.rank} with {len(tensor.dimensions)} dimensions; expected equal "
            f"numbers up to {_MAX_RANK}."
        )
    if any(d.WhichOneof("dimension") != "constant" for d in tensor.dimensions):
        raise FlexibleShapeError(
            f"{label}: has a flexible shape, which is not supported; convert with a fixed shape."
        )
    return TensorType(dtype, tuple(int(d.constant.size) for d in tensor.dimensions))


def _literal(value: Any, label: str) -> Literal:
    kind = _tensor_type(value.type, label)
    where = value.WhichOneof("value")
    if where == "blobFileValue":
        blob = value.blobFileValue
        return Literal(kind, BlobReference(str(blob.fileName), int(blob.offset)))
    if where != "immediateValue" or value.immediateValue.WhichOneof("value") != "tensor":
        raise ExecutionError(f"{label}: a constant that is not a tensor is not supported.")
    tensor = value.immediateValue.tensor
    holder = tensor.WhichOneof("value")
    if kind.dtype == "string":
        texts = tensor.strings.values
        if holder != "strings" or len(texts) != 1 or kind.count != 1:
            raise ExecutionError(f"{label}: expected one text as its constant, got {len(texts)}.")
        return Literal(kind, str(texts[0]))
    return Literal(kind, _immediate(tensor, holder, kind, label))


def _immediate(tensor: Any, holder: str | None, kind: TensorType, label: str) -> NumpyArray:
    if holder == "bytes":
        data = np.frombuffer(tensor.bytes.values, np.uint8)
        if data.size == packed_size(kind.dtype, kind.count):
            return unpack(data, kind.dtype, kind.count).reshape(kind.shape)
    elif holder in _HOLDERS:
        values = getattr(tensor, holder).values
        if len(values) == kind.count:
            return np.array(values, _HOLDERS[holder]).reshape(kind.shape)
    raise ExecutionError(f"{label}: a constant of type {kind} holds the wrong number of values.")
