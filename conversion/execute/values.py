"""The form of a program's values at run time: float32, int64 or bool torch tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdm_apple.config.types import NumpyArray

from .graph import TensorType

_LARGE, _CHUNK = 1 << 20, 1 << 16  # values of 4 bytes
_WIDE = {"f": np.float32, "b": np.bool_, "i": np.int64, "u": np.int64}


def round_to_fp16(value: Tensor, owned: bool) -> Tensor:
    """Round to fp16 but keep float32 storage; values too large for fp16 become infinite.

    Args:
        owned: nothing else uses the memory of `value`, so it may be overwritten.
    """
    if not owned:
        return value.half().float()
    if value.numel() <= _LARGE or not value.is_contiguous():
        return value.copy_(value.half())
    # use a buffer that stays in the processor's cache: allocating memory for a large value costs
    # more than the arithmetic
    flat, buffer = value.view(-1), torch.empty(_CHUNK, dtype=torch.float16)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(buffer[: part.numel()].copy_(part))
    return value


def to_tensor(array: NumpyArray) -> Tensor:
    """The tensor of an array of any numeric type; a writable float32 array shares its memory."""
    wide = np.ascontiguousarray(array, _WIDE[array.dtype.kind])
    return torch.as_tensor(wide if wide.flags.writeable else wide.copy()).reshape(array.shape)


def to_array(value: Tensor, kind: TensorType) -> NumpyArray:
    """The array of a tensor: float32 for any floating-point type, otherwise the declared type."""
    array = value.contiguous().numpy()
    return array if kind.is_float or kind.dtype == "bool" else array.astype(kind.dtype)


def tensor_kind(kind: TensorType) -> torch.dtype:
    """The torch type that holds values of a declared type."""
    if kind.is_float:
        return torch.float32
    return torch.bool if kind.dtype == "bool" else torch.int64
