"""A function of a package as plain typed values: operations in order, names defined before use.

Input: the protobuf message of one function. Output: a `Function`. Features the executor cannot run
(states, ranks known only when called) are refused by name. Operations get their meaning later.

Loops and branches hold blocks of operations. Their constants are moved out to the function, and
names that a block shares with other blocks are changed, so that a name has one meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mdm_apple.config.types import NumpyArray

from .blob import BITS, packed_size, unpack
from .errors import ExecutionError, FlexibleShapeError

UNKNOWN = -1  # the size of an axis that is known only when the program is called

DTYPES = {
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
    """Element type (fp16, int32, uint4, bool, string ...) and shape; () for a scalar.

    An axis may be UNKNOWN; `count` and `bytes` mean something only if none is. A list of tensors
    has an UNKNOWN first axis that counts them.
    """

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

    @property
    def is_fixed(self) -> bool:
        return UNKNOWN not in self.shape

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether values of this type may have this shape."""
        return len(shape) == len(self.shape) and all(
            declared in (UNKNOWN, size) for declared, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        sizes = ", ".join("?" if size == UNKNOWN else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"


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
    """One step: `inputs` by parameter name, each with one or several value names or literals.

    blocks: the condition and the body of a loop, or the two branches of a condition.
    """

    kind: str
    name: str
    inputs: dict[str, tuple[str | Literal, ...]]
    outputs: tuple[tuple[str, TensorType], ...]
    blocks: tuple[Block, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name!r}"

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the values it reads, in its blocks too."""
        own = {b for parts in self.inputs.values() for b in parts if isinstance(b, str)}
        return frozenset(own.union(*(block.reads for block in self.blocks)))

    @property
    def is_constant(self) -> bool:
        return self.kind == "const" or self.kind.startswith("constexpr_")


@dataclass(frozen=True)
class Block:
    """Operations that run several times, or not always; inputs and results in order."""

    inputs: tuple[tuple[str, TensorType], ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of its inputs and of the values it computes."""
        computed = {name for o in self.operations for name, _ in o.outputs}
        return frozenset(computed.union(name for name, _ in self.inputs))

    @cached_property
    def reads(self) -> frozenset[str]:
        """Names of the values from outside that it reads."""
        read = set(self.outputs).union(*(o.reads for o in self.operations))
        return frozenset(read - self.names)


@dataclass(frozen=True)
class Classifier:
    """The end of a classifier: the value `scores` holds a number for each of `labels`.

    label, probabilities: names under which the best label and the numbers by label are returned.
    shows_scores: whether the scores themselves are an output too.
    """

    name: str
    scores: str
    labels: tuple[str, ...] | tuple[int, ...]
    label: str
    probabilities: str
    shows_scores: bool = False


@dataclass(frozen=True)
class Function:
    """A callable program: inputs by name, operations in order, names of the results.

    classifier: its scores are among `outputs`; its operation is not among `operations`.
    """

    name: str
    inputs: dict[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    classifier: Classifier | None = None

    @property
    def first_flexible(self) -> str | None:
        """What has a flexible shape, as the beginning of a sentence; None: nothing has."""
        for name, kind in self.inputs.items():
            if not kind.is_fixed:
                return f"input {name!r}"
        for operation in self.operations:
            if not all(kind.is_fixed for _, kind in operation.outputs):
                return operation.label
        return None


def read_function(name: str, message: Any) -> Function:
    """A `Function` from its protobuf message. Raises ExecutionError if it cannot be run."""
    block = message.block_specializations.get(message.opset)
    if block is None:
        raise ExecutionError(
            f"function {name!r}: has no block for its own opset {message.opset!r}; it is damaged."
        )
    inputs = {i.name: _value_type(i.type, f"input {i.name!r}") for i in message.inputs}
    reader = _Reader(inputs)
    operations, classifier = reader.operations(block)
    outputs = list(block.outputs)
    if classifier is not None:
        made = (classifier.label, classifier.probabilities)
        outputs = [output for output in outputs if output not in made]
        if classifier.scores in outputs:
            classifier = replace(classifier, shows_scores=True)
        else:
            outputs.append(classifier.scores)
    for output in outputs:
        if output not in reader.scope:
            raise ExecutionError(f"function {name!r}: its output {output!r} is never computed.")
    return Function(name, inputs, operations, tuple(outputs), classifier)


class _Reader:
    """Reads the operations of a function, and those of the blocks within it."""

    def __init__(self, inputs: Iterable[str]) -> None:
        self.scope = {name: name for name in inputs}  # as the block writes a name -> its own name
        self._taken = set(self.scope)
        self._depth = 0
        self._constants: list[Operation] = []  # of blocks
        self._labels: dict[str, tuple[str, ...] | tuple[int, ...]] = {}
        self._types: dict[bytes, TensorType] = {}  # thousands of types include few distinct ones

    def operations(self, block: Any) -> tuple[tuple[Operation, ...], Classifier | None]:
        """The operations of the function itself, and its classifier if it ends in one."""
        operations: list[Operation] = []
        classifier: Classifier | None = None
        for op in block.operations:
            if op.type == "classify":
                classifier = self._classifier(op)
                continue
            if _makes_labels(op):
                self._labels[op.outputs[0].name] = _labels(op.attributes["val"], _label(op))
                continue
            operation = self._operation(op)
            operations += self._constants
            self._constants = []
            operations.append(operation)
        return tuple(operations), classifier

    def _operation(self, op: Any) -> Operation:
        label = _label(op)
        attributes = {key: value for key, value in op.attributes.items() if key != "name"}
        # const and the older constexpr operations keep their parameters among the attributes
        inputs: dict[str, tuple[str | Literal, ...]] = {
            key: (_literal(value, label),) for key, value in attributes.items()
        }
        for key, argument in op.inputs.items():
            inputs[key] = tuple(self._binding(b, key, label) for b in argument.arguments)
        blocks = tuple(self._block(block, label) for block in op.blocks)
        outputs = tuple((self._named(o.name, label), self._type(o.type, label)) for o in op.outputs)
        return Operation(op.type, _name(op), inputs, outputs, blocks)

    def _block(self, block: Any, label: str) -> Block:
        outside = dict(self.scope)
        self._depth += 1
        inputs = tuple(
            (self._named(i.name, label), self._type(i.type, label)) for i in block.inputs
        )
        operations: list[Operation] = []
        for op in block.operations:
            operation = self._operation(op)
            (self._constants if operation.is_constant else operations).append(operation)
        outputs = tuple(self._known(name, "output of a block", label) for name in block.outputs)
        self._depth -= 1
        self.scope = outside
        return Block(inputs, tuple(operations), outputs)

    def _named(self, name: str, label: str) -> str:
        """Adds a value to the scope; returns the name that no other value of the function has."""
        if name in self.scope and not self._depth:
            raise ExecutionError(f"{label}: computes {name!r} a second time.")
        own = name
        while own in self._taken:
            own = f"{name}#{len(self._taken)}"
        self.scope[name] = own
        self._taken.add(own)
        return own

    def _known(self, name: str, what: str, label: str) -> str:
        own = self.scope.get(name)
        if own is None:
            raise ExecutionError(
                f"{label}: its {what} is {name!r}, which is not computed before it; the package "
                "is damaged."
            )
        return own

    def _binding(self, binding: Any, parameter: str, label: str) -> str | Literal:
        kind = binding.WhichOneof("binding")
        if kind == "name":
            return self._known(str(binding.name), f"input {parameter}", label)
        if kind == "value":
            return _literal(binding.value, label)
        raise ExecutionError(f"{label}: has an input bound to nothing; the package is damaged.")

    def _type(self, message: Any, label: str) -> TensorType:
        stored = message.SerializeToString(deterministic=True)
        if stored not in self._types:
            self._types[stored] = _value_type(message, label)
        return self._types[stored]

    def _classifier(self, op: Any) -> Classifier:
        label, inputs = _label(op), dict(op.inputs)
        scores, classes = (
            list(inputs[key].arguments) if key in inputs else []
            for key in ("probabilities", "classes")
        )
        if len(scores) != 1 or len(classes) != 1 or len(op.outputs) != 2:
            raise ExecutionError(f"{label}: expected probabilities, classes and two outputs.")
        value = self._binding(scores[0], "probabilities", label)
        if not isinstance(value, str):
            raise ExecutionError(f"{label}: its probabilities are a constant, not computed.")
        if classes[0].WhichOneof("binding") == "value":
            labels = _labels(classes[0].value, label)
        else:
            labels = self._labels.get(str(classes[0].name), ())
        if not labels:
            raise ExecutionError(f"{label}: has no list of class labels; the package is damaged.")
        return Classifier(_name(op), value, labels, op.outputs[0].name, op.outputs[1].name)


def _makes_labels(op: Any) -> bool:
    """Whether an operation is a constant list, which only a classifier reads."""
    return (
        op.type == "const"
        and len(op.outputs) == 1
        and op.outputs[0].type.WhichOneof("type") == "listType"
        and "val" in op.attributes
    )


def _labels(value: Any, label: str) -> tuple[str, ...] | tuple[int, ...]:
    """The texts or the whole numbers of a constant list."""
    found: list[Any] = []
    for item in value.immediateValue.list.values:
        tensor = item.immediateValue.tensor
        holder = tensor.WhichOneof("value")
        if holder not in ("strings", "ints", "longInts") or not len(getattr(tensor, holder).values):
            raise ExecutionError(f"{label}: a class label is neither a text nor a whole number.")
        found.append(getattr(tensor, holder).values[0])
    if len({type(one) for one in found}) > 1 or len(set(found)) < len(found):
        raise ExecutionError(f"{label}: its class labels repeat or are of several types.")
    return tuple(found)


def _label(op: Any) -> str:
    if not str(op.type).isidentifier():
        raise ExecutionError(
            f"an operation is called {str(op.type)[:40]!r}; the package is damaged."
        )
    return f"{op.type} {_name(op)!r}"


def _name(op: Any) -> str:
    """The name that the program gives an operation; a text, or nothing, if it gives one."""
    if "name" in op.attributes:
        texts = op.attributes["name"].immediateValue.tensor.strings.values
        if len(texts) == 1:
            return str(texts[0])
    return str(op.outputs[0].name) if op.outputs else ""


def _value_type(value: Any, label: str) -> TensorType:
    """The type of a tensor, or that of a list of tensors with its length as an unknown axis."""
    if value.WhichOneof("type") != "listType":
        return _tensor_type(value, label)
    element = _tensor_type(value.listType.type, label)
    return TensorType(element.dtype, (UNKNOWN, *element.shape))


def _tensor_type(value: Any, label: str) -> TensorType:
    kind = value.WhichOneof("type")
    if kind == "stateType":
        raise ExecutionError(
            f"{label}: is a state (read_state), and states are not supported by this executor."
        )
    if kind != "tensorType":
        raise ExecutionError(f"{label}: is not supported here; expected a tensor, got {kind}.")
    tensor = value.tensorType
    dtype = DTYPES.get(tensor.dataType)
    if dtype is None:
        raise ExecutionError(f"{label}: data type {tensor.dataType} is not supported.")
    if tensor.rank != len(tensor.dimensions) or tensor.rank > _MAX_RANK:
        raise ExecutionError(
            f"{label}: rank {tensor.rank} with {len(tensor.dimensions)} dimensions; expected equal "
            f"numbers up to {_MAX_RANK}."
        )
    return TensorType(dtype, tuple(_size(dimension, label) for dimension in tensor.dimensions))


def _size(dimension: Any, label: str) -> int:
    if dimension.WhichOneof("dimension") == "constant":
        return int(dimension.constant.size)
    if dimension.unknown.variadic:
        raise FlexibleShapeError(
            f"{label}: has a flexible number of axes, which is not supported; convert with a fixed "
            "rank."
        )
    return UNKNOWN


def _literal(value: Any, label: str) -> Literal:
    kind = _tensor_type(value.type, label)
    if not kind.is_fixed:
        raise ExecutionError(f"{label}: a constant has no fixed shape; the package is damaged.")
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
