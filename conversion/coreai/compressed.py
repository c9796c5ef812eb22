"""Puts compressed weights into a Core AI program, in its own encodings.

A constant is replaced by an operation that makes the same tensor from smaller constants. Where
functions share a weight, they share these too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .weights import ProgramWeight

Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]

LOOKUP = "coreai.lut_to_dense"
SCALING = "coreai.blockwise_shift_scale"


def store_palettes(
    weight: ProgramWeight, indices: Bytes, bits: int, values: Halves, axis: int
) -> None:
    """Replace a weight by indices into palettes; within `program.editing`.

    Args:
        indices: packed from the lowest bit upwards, in the order of the weight's numbers.
        values: (groups, 2^bits), for groups of channels along `axis`.
    """
    from coreai._compiler.ir import F16Type, IntegerType, RankedTensorType

    lut = [1] * len(weight.shape) + [values.shape[1], 1]
    lut[axis] = len(values)
    kind = RankedTensorType.get(weight.shape, IntegerType.get_unsigned(bits))
    table = RankedTensorType.get(lut, F16Type.get())
    parts = [
        (kind, _buffer(indices, f"{weight.name}_indices", kind)),
        (table, _buffer(values, f"{weight.name}_palettes", table)),
        _first_axis(),
    ]
    _replace(weight, LOOKUP, parts)


def store_integers(weight: ProgramWeight, data: Bytes, bits: int, scale: Halves) -> None:
    """Replace a weight by whole numbers and scales; within `program.editing`.

    Args:
        data: packed in two's complement, in the order of the weight's numbers.
        scale: one per block; its shape divides the weight's.
    """
    from coreai._compiler.ir import F16Type, IntegerType, RankedTensorType

    number = IntegerType.get_signed(bits)
    kind = RankedTensorType.get(weight.shape, number)
    scales = RankedTensorType.get(scale.shape, F16Type.get())
    parts = [
        (kind, _buffer(data, f"{weight.name}_integers", kind)),
        (scales, _buffer(scale, f"{weight.name}_scales", scales)),
        _zeros(RankedTensorType.get(scale.shape, number)),
        _zeros(scales),
    ]
    _replace(weight, SCALING, parts)


Stored = tuple[Any, Any]  # type and value of a constant


def _replace(weight: ProgramWeight, operation: str, parts: list[Stored]) -> None:
    """In every function, put an operation on new constants in place of the weight's constant."""
    from coreai._compiler.ir import InsertionPoint, Operation

    for constant in weight.constants:
        old = constant.operation.operation
        with InsertionPoint(old):
            operands = [
                Operation.create("coreai.constant", [kind], attributes={"value": value}).result
                for kind, value in parts
            ]
            new = Operation.create(operation, [old.results[0].type], operands)
        old.results[0].replace_all_uses_with(new.result)
        old.erase()


def _buffer(data: NDArray[Any], name: str, kind: Any) -> Any:
    from coreai._compiler.ir import DenseResourceElementsAttr

    return DenseResourceElementsAttr.get_from_buffer(np.array(data, order="C").data, name, kind)


def _first_axis() -> Stored:
    """The axis along which a palette of vectors would expand; ours hold single numbers."""
    from coreai._compiler.ir import IntegerType, RankedTensorType

    return _zeros(RankedTensorType.get([], IntegerType.get_signed(16)))


def _zeros(kind: Any) -> Stored:
    from coreai._compiler.ir import DenseElementsAttr, FloatAttr, IntegerAttr, IntegerType

    number = kind.element_type
    make: Callable[[Any, Any], Any] = (
        IntegerAttr.get if IntegerType.isinstance(number) else FloatAttr.get
    )
    return kind, DenseElementsAttr.get_splat(kind, make(number, 0))
