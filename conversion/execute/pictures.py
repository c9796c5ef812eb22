"""Pictures as an ML program sees them: (1, C, H, W), numbers from 0 to 255, channels in its order.

Scale and bias of a converted picture are operations of the program, so nothing is scaled here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mdm_apple.config.types import NumpyArray, Pixels

from .errors import ExecutionError

Colors = Literal["RGB", "BGR", "gray", "gray fp16"]


def channels_of(colors: Colors) -> int:
    return 3 if colors in ("RGB", "BGR") else 1


def sides_of(array: NumpyArray, colors: Colors, label: str, expected: str) -> tuple[int, int]:
    """Height and width of a picture, or of numbers that already are in the program's form.

    Args:
        label, expected: name the input and what it takes, for the sentence of a refusal.

    Raises ExecutionError for another form.
    """
    channels = channels_of(colors)
    as_picture = (3, (3,)) if channels == 3 else (2, ())
    if array.dtype == np.uint8 and (array.ndim, array.shape[2:]) == as_picture:
        return int(array.shape[0]), int(array.shape[1])
    if array.ndim == 4 and array.shape[:2] == (1, channels) and array.dtype.kind in "fiub":
        return int(array.shape[2]), int(array.shape[3])
    form = "(H, W, 3) in RGB" if channels == 3 else "(H, W)"
    raise ExecutionError(
        f"{label}: expected {expected}, as uint8 {form} or as numbers (1, {channels}, H, W); got "
        f"{array.dtype}{list(array.shape)}."
    )


def to_values(array: NumpyArray, colors: Colors, label: str) -> NumpyArray:
    """An array that `sides_of` takes as the program reads it: float32 (1, C, H, W).

    Raises ExecutionError for numbers that no picture of 8 bits can hold.
    """
    if array.ndim == 3:
        ordered = array[..., ::-1] if colors == "BGR" else array
        return np.ascontiguousarray(ordered.transpose(2, 0, 1)[None], np.float32)
    if array.ndim == 2:
        return array[None, None].astype(np.float32)
    values = array.astype(np.float32)
    if colors != "gray fp16" and not _are_bytes(values):
        shown = f"{values.min():g} to {values.max():g}"
        raise ExecutionError(
            f"{label}: a picture has whole numbers from 0 to 255, and this has {shown}; give 0 to "
            "255, because the program itself scales what it reads."
        )
    return values


def from_values(values: NumpyArray, colors: Colors) -> Pixels:
    """An output (1, C, H, W) as the picture that Core ML makes of it: uint8 (H, W, 3) or (H, W)."""
    clipped = np.clip(np.rint(np.nan_to_num(values[0])), 0, 255).astype(np.uint8)
    if channels_of(colors) == 1:
        return clipped[0]
    ordered = clipped[::-1] if colors == "BGR" else clipped
    return np.ascontiguousarray(ordered.transpose(1, 2, 0))


def _are_bytes(values: NumpyArray) -> bool:
    if values.size == 0:
        return True
    whole = bool((values == np.rint(values)).all())  # false for NaN too
    return whole and float(values.min()) >= 0 and float(values.max()) <= 255
