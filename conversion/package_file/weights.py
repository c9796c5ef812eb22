"""The weights of a package that can be compressed, and those that should not be.

Only constants that an operation in WEIGHTED multiplies by, stored as fp16, count as weights here;
biases, norms and position tables do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..execute.graph import BlobReference, Function, Literal, Operation

# operation -> the parameter that holds its weight
WEIGHTED = {
    "conv": "weight",
    "conv_transpose": "weight",
    "linear": "weight",
    "gather": "x",
    "matmul": "y",
}


@dataclass(frozen=True)
class Weight:
    """A constant that a package multiplies by.

    out_axis, in_axis: axes of its output and input channels; None if its users disagree.
    """

    name: str
    shape: tuple[int, ...]
    out_axis: int | None
    in_axis: int | None

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class StoredWeight(Weight):
    """A weight in the weight file of a Core ML package."""

    stored: BlobReference


def weights_of(function: Function) -> list[StoredWeight]:
    """The fp16 constants that operations in WEIGHTED take as weights, in order of first use."""
    constants = {o.outputs[0][0]: o for o in function.operations if o.kind == "const"}
    settings = {n: o.inputs["val"][0] for n, o in constants.items() if "val" in o.inputs}
    users: dict[str, list[Operation]] = {}
    for operation in function.operations:
        name = weight_name(operation)
        if name is not None and name in constants:
            users.setdefault(name, []).append(operation)
    out: list[StoredWeight] = []
    for name, operations in users.items():
        (_, kind), value = constants[name].outputs[0], settings.get(name)
        if not isinstance(value, Literal) or not isinstance(value.value, BlobReference):
            continue
        if kind.dtype != "fp16" or len(kind.shape) < 2:
            continue
        axes = {_axes(o, len(kind.shape), settings) for o in operations}
        out_axis, in_axis = axes.pop() if len(axes) == 1 else (None, None)
        out.append(StoredWeight(name, kind.shape, out_axis, in_axis, value.value))
    return out


def weight_name(operation: Operation) -> str | None:
    """Name of the value that an operation uses as its weight."""
    parts = operation.inputs.get(WEIGHTED.get(operation.kind, ""), ())
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else None


def _axes(operation: Operation, rank: int, settings: dict[str, str | Literal]) -> tuple[int, int]:
    """Axes of output and input channels, as coremltools chooses them."""
    if operation.kind == "conv_transpose":
        return 1, 0
    if operation.kind != "matmul":
        return 0, 1
    transposed = operation.inputs.get("transpose_y", (None,))[0]
    if isinstance(transposed, str):
        transposed = settings.get(transposed)
    flag = transposed.value if isinstance(transposed, Literal) else None
    flipped = isinstance(flag, np.ndarray) and bool(flag.all())
    return (rank - 2, rank - 1) if flipped else (rank - 1, rank - 2)


def end_convolutions(function: Function) -> set[str]:
    """Weights of the convolutions nearest to each input image and each output image.

    Images are the inputs and outputs with four dimensions and three channels.
    """
    kinds = dict(function.inputs)
    made_by: dict[str, Operation] = {}
    read_by: dict[str, list[Operation]] = {}
    for operation in function.operations:
        for name, kind in operation.outputs:
            made_by[name], kinds[name] = operation, kind
        for name in _computed(operation):
            read_by.setdefault(name, []).append(operation)

    def is_image(name: str) -> bool:
        shape = kinds[name].shape
        return len(shape) == 4 and shape[1] == 3

    ends: set[str] = set()
    for name in filter(is_image, function.inputs):
        ends |= _nearest(name, lambda n: read_by.get(n, []), lambda o: [x for x, _ in o.outputs])
    for name in filter(is_image, function.outputs):
        ends |= _nearest(name, lambda n: [made_by[n]] if n in made_by else [], _computed)
    return ends


def _nearest(
    start: str,
    neighbours: Callable[[str], list[Operation]],
    onward: Callable[[Operation], list[str]],
) -> set[str]:
    """Weights of the first convolutions on every path from a value."""
    found: set[str] = set()
    pending, seen = [start], {start}
    while pending:
        for operation in neighbours(pending.pop()):
            if operation.kind == "conv":
                weight = weight_name(operation)
                found |= {weight} if weight else set()
                continue
            fresh = [name for name in onward(operation) if name not in seen]
            seen.update(fresh)
            pending += fresh
    return found


def _computed(operation: Operation) -> list[str]:
    return [b for parts in operation.inputs.values() for b in parts if isinstance(b, str)]
