"""Files as inputs of a package: an array from a .npy, a picture from a PNG, JPEG, WebP or BMP.

The files come from outside. Sizes are compared with what the package takes before anything of that
size is allocated, and nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdm_apple.config.types import NumpyArray, Pixels
from mdm_apple.data.kinds import PICTURES
from mdm_apple.data.read_picture import picture_size, read_upright, shown

from .errors import ExecutionError
from .features import Feature
from .pictures import channels_of


def read_input(path: Path, feature: Feature) -> NumpyArray | Pixels:
    """The value of one input, to be given to a loaded package. Raises MdmError.

    A .npy is mapped into memory, not read; a picture must have a size that the package takes.
    """
    if not path.is_file():
        raise ExecutionError(f"{shown(path)}: no such file.")
    if path.suffix.lower() == ".npy":
        return _read_array(path)
    if path.suffix.lower() not in PICTURES.suffixes:
        raise ExecutionError(
            f"{shown(path)}: input {feature.name!r} is read from a .npy file or a picture "
            f"({', '.join(sorted(PICTURES.suffixes))})."
        )
    if feature.colors is None:
        raise ExecutionError(
            f"{shown(path)}: input {feature.name!r} is no picture; expected {feature}, from a .npy "
            "file."
        )
    return _read_picture(path, feature)


def _read_array(path: Path) -> NumpyArray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a hostile header fails in every possible way
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ExecutionError(
            f"{shown(path)}: cannot be read as a .npy file of numbers ({shown(reason)}); write it "
            "with numpy.save."
        ) from None
    if array.dtype.kind not in "fiub":
        raise ExecutionError(f"{shown(path)}: expected numbers, got type {array.dtype}.")
    return array


def _read_picture(path: Path, feature: Feature) -> Pixels:
    """uint8 (H, W, 3) in RGB, or (H, W) in gray, upright; transparency is put on white."""
    size = picture_size(path)  # refuses what is no picture, and sizes that no machine should decode
    assert feature.colors is not None
    channels = channels_of(feature.colors)
    turned = {size, size[::-1]}  # by a camera
    if not any(feature.allows((1, channels, high, wide)) for wide, high in turned):
        wide, high = size
        raise ExecutionError(
            f"{shown(path)}: input {feature.name!r} is {feature}, and this is {wide} wide "
            f"and {high} high; resize it first."
        )
    return np.asarray(read_upright(path).convert("RGB" if channels == 3 else "L"))
