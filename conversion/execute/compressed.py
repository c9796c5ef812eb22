"""Decodes compressed weights: palettes, scales, sparse forms.

It knows the MIL operations constexpr_* of iOS 16 (indices packed in bytes, with a `shape`) and of
iOS 18 (typed sub-byte indices; palettes and scales per group or block). It decodes in fp32, so that
no product is rounded, and refuses an operation whose content differs from its declared shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import NumpyArray

from .errors import ExecutionError
from .graph import Operation, TensorType
from .packed import Packed, look_up_packed

Value = NumpyArray | Packed | str
Values = Mapping[str, Value]


def decode(operation: Operation, inputs: Values) -> list[Value]:
    """The outputs of one const or constexpr operation. Raises ExecutionError."""
    if operation.kind == "const":
        outputs = [inputs["val"]] if "val" in inputs else []
    else:
        decoder = DECODERS.get(operation.kind)
        if decoder is None:
            raise ExecutionError(f"{operation.label}: unknown compressed form; update mdm-apple.")
        try:
            _check_vectors(operation, inputs)
            outputs = list[Value](decoder(inputs))
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise ExecutionError(
                f"{operation.label}: its compressed weights are inconsistent "
                f"({_first_line(error)}); the package is damaged."
            ) from None
    declared = [kind for _, kind in operation.outputs]
    if len(outputs) != len(declared) or not all(map(_fits, outputs, declared)):
        raise ExecutionError(
            f"{operation.label}: its values do not match the {', '.join(map(str, declared))} it "
            "declares; the package is damaged."
        )
    return outputs


def _check_vectors(operation: Operation, inputs: Values) -> None:
    """A palette of long vectors multiplies the size of its indices; allow no more than declared."""
    indices, lut = inputs.get("indices", inputs.get("indices_mask")), inputs.get("lut")
    if indices is None or isinstance(indices, str) or lut is None or _array(lut).ndim < 2:
        return
    size = int(np.prod(indices.shape)) * _array(lut).shape[-1]
    _need(size == operation.outputs[0][1].count, "a result of the declared size")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _fits(value: Value, kind: TensorType) -> bool:
    if isinstance(value, str):
        return kind.dtype == "string"
    if isinstance(value, Packed):
        return value.shape == kind.shape and not kind.is_float
    return value.shape == kind.shape and (value.dtype.kind == "f") == kind.is_float


def lut_to_dense(inputs: Values) -> tuple[NumpyArray]:
    """Palette lookup: iOS 16 (packed indices and `shape`) or iOS 18 (a palette per group)."""
    indices, lut = inputs["indices"], _array(inputs["lut"])
    if "shape" in inputs:
        shape = _shape(inputs["shape"])
        bits = lut.size.bit_length() - 1
        _need(lut.shape == (2**bits,) and bits in (1, 2, 4, 6, 8), "a palette of 2 to 256 values")
        indices = Packed(_bytes(indices, bits, shape), bits, shape)
        lut = lut.reshape(*[1] * len(shape), -1, 1)
    if isinstance(indices, Packed) and lut.dtype.kind == "f":
        found = look_up_packed(indices, lut)
        if found is not None:
            return (found,)
    axis = int(_array(inputs["vector_axis"])) if "vector_axis" in inputs else None
    return (look_up(_array(indices), lut, axis),)


def look_up(indices: NumpyArray, lut: NumpyArray, vector_axis: int | None) -> NumpyArray:
    """Values of `lut` (*groups, P, V) at `indices`; vectors of V > 1 run along `vector_axis`."""
    _need(lut.ndim == indices.ndim + 2, "a palette with two more dimensions than the indices")
    groups, palette, width = lut.shape[:-2], lut.shape[-2], lut.shape[-1]
    rows = _table(lut).reshape(-1, width)
    _need(indices.size == 0 or int(indices.max()) < palette, "indices within the palette")
    where: NumpyArray = indices
    if rows.shape[0] > palette:
        where = indices + palette * block_numbers(indices.shape, groups)
    if width == 1:
        return rows[:, 0][where]
    _need(vector_axis is not None, "a vector axis")
    axis = (vector_axis or 0) % indices.ndim
    found = np.moveaxis(rows[where], -1, axis + 1)
    shape = list(indices.shape)
    shape[axis] *= width
    return np.ascontiguousarray(found).reshape(shape)


def block_numbers(shape: tuple[int, ...], blocks: tuple[int, ...]) -> NumpyArray:
    """The flat index of the block of each element of `shape`; axis i has blocks[i] of them."""
    total = np.zeros((1,) * len(shape), np.int32)
    for axis, (size, count) in enumerate(zip(shape, blocks, strict=True)):
        _need(count > 0 and size % count == 0, "a number of blocks that divides the weight")
        number = np.arange(size, dtype=np.int32) // (size // count)
        total = total * count + number.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return total


def affine_dequantize(inputs: Values) -> tuple[NumpyArray]:
    """scale * (q - zero_point), both scalars or vectors along `axis` (iOS 16)."""
    data = _wide(inputs["quantized_data"])
    axis = int(_array(inputs["axis"])) % data.ndim
    along = [-1 if i == axis else 1 for i in range(data.ndim)]
    scale, zero = (_wide(inputs[k]).reshape(along) for k in ("scale", "zero_point"))
    return ((data - zero) * scale,)


def blockwise_shift_scale(inputs: Values) -> tuple[NumpyArray]:
    """scale * (q - offset) with one scale per block (iOS 18)."""
    return (shift_scale(_array(inputs["data"]), inputs),)


def shift_scale(data: NumpyArray, inputs: Values) -> NumpyArray:
    scale = _wide(inputs["scale"])
    _need(scale.ndim == data.ndim, "scales of the same rank as the weight")
    # split each axis into (blocks, size within), so that scales broadcast without being repeated
    split = [
        n for size, count in zip(data.shape, scale.shape, strict=True) for n in _cut(size, count)
    ]
    wide = [n for count in scale.shape for n in (count, 1)]
    out = _wide(data).reshape(split)
    if "offset" in inputs:
        out = out - _wide(inputs["offset"]).reshape(wide)
    return (out * scale.reshape(wide)).reshape(data.shape)


def _cut(size: int, count: int) -> tuple[int, int]:
    _need(count > 0 and size % count == 0, "a number of scales that divides the weight")
    return count, size // count


def sparse_to_dense(inputs: Values) -> tuple[NumpyArray]:
    """Zeros with `nonzero_data` at the mask; iOS 16 packs the mask and gives `shape`."""
    mask = _array(inputs["mask"])
    if "shape" in inputs:
        shape = _shape(inputs["shape"])
        mask = Packed(_bytes(inputs["mask"], 1, shape), 1, shape).unpack()
    return (_spread(_array(inputs["nonzero_data"]), mask),)


def lut_to_sparse(inputs: Values) -> tuple[NumpyArray, NumpyArray]:
    """Palette lookup for the nonzero entries only; returns the mask and the nonzero values."""
    mask, lut = _array(inputs["indices_mask"]), _array(inputs["lut"])
    axis = int(_array(inputs["vector_axis"])) if "vector_axis" in inputs else None
    dense = look_up(_spread(_array(inputs["indices_nonzero_data"]), mask), lut, axis)
    if axis is not None:
        mask = np.repeat(mask, lut.shape[-1], axis)
    return mask, dense[mask != 0]


def sparse_shift_scale(inputs: Values) -> tuple[NumpyArray, NumpyArray]:
    """Dequantisation of the nonzero entries only; returns the mask and the nonzero values."""
    mask = _array(inputs["data_mask"])
    dense = shift_scale(_spread(_array(inputs["nonzero_data"]), mask), inputs)
    return mask, dense[mask != 0]


def cast_constant(inputs: Values) -> tuple[NumpyArray]:
    return (_wide(inputs["source_val"]),)


DECODERS: dict[str, Callable[[Values], tuple[NumpyArray, ...]]] = {
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_shift_scale,
    "constexpr_cast": cast_constant,
}


def _array(value: Value) -> NumpyArray:
    if isinstance(value, str):
        raise TypeError("expected numbers, got text")
    return value.unpack() if isinstance(value, Packed) else value


def _wide(value: Value) -> NumpyArray:
    return _array(value).astype(np.float32)


def _table(lut: NumpyArray) -> NumpyArray:
    """Palette entries in fp32; integers stay integers for a later scale."""
    return lut.astype(np.float32) if lut.dtype.kind == "f" else lut


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(int(n) for n in _array(value).reshape(-1))


def _bytes(value: Value, bits: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The plain bytes that hold indices of `bits` each for a weight of this shape."""
    data = value.data if isinstance(value, Packed) else _array(value).view(np.uint8)
    need = (int(np.prod(shape, dtype=object)) * bits + 7) // 8
    _need(data.size == need, f"{need} packed bytes for {shape}")
    return data


def _spread(values: NumpyArray, mask: NumpyArray) -> NumpyArray:
    chosen = mask != 0
    _need(values.shape == (int(chosen.sum()),), "as many values as the mask has ones")
    dense = np.zeros(mask.shape, values.dtype)
    dense[chosen] = values
    return dense


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")
