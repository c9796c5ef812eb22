"""Captioned pictures from the caller's own object with a length, captions and pictures."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import DataError, Dataset, evenly_spread, hash_fields
from mdm_apple.text.captions import clean_caption

SAMPLED = 16  # pictures in the fingerprint at most, in addition to all captions


@runtime_checkable
class PictureSource(Protocol):
    """An object that `mdm.train(data=...)` accepts besides names and folders."""

    def __len__(self) -> int: ...

    def caption(self, index: int) -> str:
        """The caption of a picture, which may be empty."""
        ...

    def picture(self, index: int, side: int) -> NDArray[np.uint8] | Image.Image:
        """The picture as a Pillow image or as bytes (side, side, 3), RGB in sRGB.

        May be called from several threads; the same index always gives the same picture.
        """
        ...


def dataset_of(source: PictureSource, side: int) -> Dataset:
    """The pictures of an object as a data set. Raises DataError for unusable ones.

    The fingerprint covers all captions and some pictures, so that a resumed run notices changes.
    """
    if not len(source):
        raise DataError("data: the object has no pictures; its len() is 0.")
    captions = [clean_caption(source.caption(index)) for index in range(len(source))]

    def read(index: int) -> tuple[Pixels, float]:
        return _pixels(source, index, side), float(side)

    sampled = [read(index)[0].tobytes().hex() for index in evenly_spread(len(source), SAMPLED)]
    fingerprint = hash_fields(["object", side, *captions, *sampled])
    return Dataset(side, captions, read, fingerprint)


def _pixels(source: PictureSource, index: int, side: int) -> Pixels:
    picture = source.picture(index, side)
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.shape != (side, side, 3) or pixels.dtype != np.uint8:
        raise DataError(
            f"data: picture({index}, {side}) gave {pixels.dtype} {pixels.shape}, expected uint8 "
            f"({side}, {side}, 3)."
        )
    return np.array(pixels)
