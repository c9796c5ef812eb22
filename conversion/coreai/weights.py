"""The weights of a Core AI program, by the rules of package_file.weights for Core ML.

A converter may store a weight transposed, or transpose it where it is used; the axes say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..package_file.weights import Weight
from .program import Constant, constants, functions, operations

TRANSPOSE = "coreai.transpose"
CONVOLUTION = "coreai.conv2d"
# operation -> the operand that holds its weight, and the axes of its output and input channels
WEIGHTED = {
    CONVOLUTION: (1, 0, 1),
    "coreai.conv3d": (1, 0, 1),
    "coreai.conv_transpose2d": (1, 1, 0),
    "coreai.conv_transpose3d": (1, 1, 0),
    "coreai.batch_matmul": (1, -1, -2),
    "coreai.decomposable.broadcasting_batch_matmul": (1, -1, -2),
    "coreai.gather_nd": (0, 0, 1),
}
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class ProgramWeight(Weight):
    """A weight of a program. constants: in each function that uses it; they share its numbers."""

    constants: tuple[Constant, ...]


def weights_of(program: Any) -> list[ProgramWeight]:
    """The fp16 constants that operations in WEIGHTED take as weights, in order of first use."""
    found: dict[str, list[Constant]] = {}
    for constant in constants(program):
        if constant.dtype == "f16" and len(constant.shape) >= 2:
            found.setdefault(constant.name, []).append(constant)
    out: list[ProgramWeight] = []
    for name, same in found.items():
        uses = {
            axes for c in same for axes in _uses(c.operation.results[0], tuple(range(len(c.shape))))
        }
        if uses:
            out_axis, in_axis = uses.pop() if len(uses) == 1 else (None, None)
            out.append(ProgramWeight(name, same[0].shape, out_axis, in_axis, tuple(same)))
    return out


def _uses(value: Any, axes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Axes of output and input channels for each operation that multiplies by a value.

    axes: of the stored constant, in the order in which the value has them.
    """
    for use in value.uses:
        operation, place = use.owner, use.operand_number
        if operation.name == TRANSPOSE and place == 0:
            yield from _uses(operation.results[0], tuple(axes[k] for k in _order(operation)))
        elif operation.name in WEIGHTED:
            operand, output, given = WEIGHTED[operation.name]
            if operand == place:
                yield axes[output], axes[given]


def _order(transpose: Any) -> list[int]:
    """The axes of its argument in the order of its result; a constant in all that we write."""
    from coreai._compiler.ir import DenseElementsAttr

    value = transpose.operands[1].owner.attributes["value"]
    return [int(k) for k in np.array(DenseElementsAttr(value)).reshape(-1)]


def end_convolutions(program: Any) -> set[str]:
    """Weights of the convolutions nearest to each input image and each output image.

    Images are the inputs and outputs with four dimensions and three channels.
    """
    ends: set[str] = set()
    for graph in functions(program):
        if "sym_visibility" in graph.operation.attributes:
            continue  # a piece that functions share
        block = graph.regions[0].blocks[0]
        for value in filter(_is_image, block.arguments):
            ends |= _nearest(value, lambda v: (use.owner for use in v.uses), lambda o: o.results)
        (output,) = (o for o in operations(graph) if o.operation.name == "coreai.output")
        for value in filter(_is_image, output.operands):
            ends |= _nearest(value, _maker, lambda o: o.operands)
    return ends


def _is_image(value: Any) -> bool:
    from coreai._compiler.ir import RankedTensorType

    shape = RankedTensorType(value.type).shape
    return len(shape) == 4 and shape[1] == IMAGE_CHANNELS


def _maker(value: Any) -> Iterator[Any]:
    from coreai._compiler.ir import OpResult

    if OpResult.isinstance(value):
        yield value.owner


def _nearest(
    start: Any, neighbours: Callable[[Any], Iterable[Any]], onward: Callable[[Any], Iterable[Any]]
) -> set[str]:
    """Weights of the first convolutions on every path from a value."""
    found: set[str] = set()
    pending, seen = [start], {start}
    while pending:
        for operation in neighbours(pending.pop()):
            if operation.name == CONVOLUTION:
                found |= set(_stored_name(operation.operands[1]))
                continue
            fresh = [value for value in onward(operation) if value not in seen]
            seen.update(fresh)
            pending += fresh
    return found


def _stored_name(value: Any) -> Iterator[str]:
    """The name of the constant behind a convolution's weight, if it is one."""
    for operation in _maker(value):
        if operation.name == TRANSPOSE:
            yield from _stored_name(operation.operands[0])
        elif (constant := Constant.of(operation)) is not None:
            yield constant.name
