"""The weights of a Core AI program, by the rules of package_file.weights for Core ML.

A converter may store a weight transposed, or transpose it where it is used; the axes say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..package_file.weights import Weight
from .program import Constant, functions, graph_name, is_private, operations

CONSTANT = "coreai.constant"
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
    """A weight of a program. constants: in each function that uses it; they share its numbers.

    An axis is also None where a transpose takes its order from the program's inputs.
    """

    constants: tuple[Constant, ...]


def weights_of(program: Any) -> list[ProgramWeight]:
    """The fp16 constants that operations in WEIGHTED take as weights, in order of first use."""
    return weights_in(functions(program))


def weights_in(graphs: Iterable[Any]) -> list[ProgramWeight]:
    """The weights of some graphs of a program."""
    places: dict[str, dict[Any, Constant]] = {}  # by name and result
    axes: dict[str, set[tuple[int | None, int | None]]] = {}
    for graph in sorted(graphs, key=graph_name):
        for operation in operations(graph):
            if operation.operation.name not in WEIGHTED:
                continue
            place, *channels = WEIGHTED[operation.operation.name]
            constant, order = _behind(operation.operands[place])
            if constant is None or constant.dtype != "f16" or len(constant.shape) < 2:
                continue
            places.setdefault(constant.name, {})[constant.operation.results[0]] = constant
            out_axis, in_axis = (None if order is None else order[k] for k in channels)
            axes.setdefault(constant.name, set()).add((out_axis, in_axis))
    out: list[ProgramWeight] = []
    for name, found in places.items():
        out_axis, in_axis = axes[name].pop() if len(axes[name]) == 1 else (None, None)
        same = tuple(found.values())
        out.append(ProgramWeight(name, same[0].shape, out_axis, in_axis, same))
    return out


def _behind(value: Any) -> tuple[Constant | None, list[int] | None]:
    """The constant that a value shows, and its axes in the order in which the value has them.

    The order is None if it is not known before the program runs.
    """
    for maker in maker_of(value):
        if maker.name == TRANSPOSE:
            constant, order = _behind(maker.operands[0])
            turned = _order(maker)
            if order is None or turned is None:
                return constant, None
            return constant, [order[k] for k in turned]
        constant = Constant.of(maker)
        if constant is not None:
            return constant, list(range(len(constant.shape)))
    return None, None


def _order(transpose: Any) -> list[int] | None:
    """The axes of its argument in the order of its result; a constant in all that we write."""
    from coreai._compiler.ir import DenseElementsAttr

    for maker in maker_of(transpose.operands[1]):
        if maker.name == CONSTANT and DenseElementsAttr.isinstance(maker.attributes["value"]):
            value = DenseElementsAttr(maker.attributes["value"])
            return [int(k) for k in np.array(value).reshape(-1)]
    return None


def end_convolutions(program: Any) -> set[str]:
    """Weights of the convolutions nearest to each input image and each output image.

    Images are the inputs and outputs with four dimensions and three channels.
    """
    ends: set[str] = set()
    for graph in functions(program):
        if is_private(graph):
            continue
        block = graph.regions[0].blocks[0]
        for value in filter(_is_image, block.arguments):
            ends |= _nearest(value, lambda v: (use.owner for use in v.uses), lambda o: o.results)
        (output,) = (o for o in operations(graph) if o.operation.name == "coreai.output")
        for value in filter(_is_image, output.operands):
            ends |= _nearest(value, maker_of, lambda o: o.operands)
    return ends


def _is_image(value: Any) -> bool:
    from coreai._compiler.ir import RankedTensorType

    shape = RankedTensorType(value.type).shape
    return len(shape) == 4 and shape[1] == IMAGE_CHANNELS


def maker_of(value: Any) -> Iterator[Any]:
    """The operation that makes a value; none if it is an argument."""
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
                constant, _ = _behind(operation.operands[1])
                found |= {constant.name} if constant else set()
                continue
            fresh = [value for value in onward(operation) if value not in seen]
            seen.update(fresh)
            pending += fresh
    return found
