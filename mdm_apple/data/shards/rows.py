"""The row of a sample: 32 bytes that say where in its shard the picture and the caption stand."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

ROW = struct.Struct("<QIQIHH2e")
ROW_TYPE = np.dtype(  # the same for many rows
    [
        *(("picture", "<u8"), ("picture_bytes", "<u4"), ("caption", "<u8")),
        *(("caption_bytes", "<u4"), ("width", "<u2"), ("height", "<u2")),
        *(("score", "<f2"), ("second_score", "<f2")),
    ]
)
SCORES = 2


class Row(NamedTuple):
    """Bytes of a shard; sides in pixels as stored; scores are NaN where there is none."""

    picture: int
    picture_bytes: int
    caption: int
    caption_bytes: int
    width: int
    height: int
    score: float
    second_score: float

    @staticmethod
    def of(data: bytes) -> Row:
        """From its bytes."""
        return Row(*ROW.unpack(data))

    def as_bytes(self) -> bytes:
        """As its bytes."""
        return ROW.pack(*self)

    def lies_within(self, size: int) -> bool:
        """Whether both parts lie in a shard of so many bytes."""
        return (
            self.picture + self.picture_bytes <= size
            and self.caption + self.caption_bytes <= size
            and min(self.width, self.height) > 0
        )
