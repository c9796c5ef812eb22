"""The row of a sample: 32 bytes that say where in its shard the picture and the caption stand.

Where a sample may have several captions, each further one takes 12 bytes more.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROW = struct.Struct("<QIQIHH2e")
MORE = struct.Struct("<QI")
ROW_TYPE = np.dtype(  # the same for many rows
    [
        *(("picture", "<u8"), ("picture_bytes", "<u4"), ("caption", "<u8")),
        *(("caption_bytes", "<u4"), ("width", "<u2"), ("height", "<u2")),
        *(("score", "<f2"), ("second_score", "<f2")),
    ]
)
SCORES = 2


class Row(NamedTuple):
    """Bytes of a shard; sides in pixels as stored; scores are NaN where there is none.

    more: place and bytes of further captions. A caption of 0 bytes is not there.
    """

    picture: int
    picture_bytes: int
    caption: int
    caption_bytes: int
    width: int
    height: int
    score: float
    second_score: float
    more: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(data: bytes) -> Row:
        """From its bytes."""
        more = tuple(MORE.iter_unpack(data[ROW.size :]))
        return Row(*ROW.unpack(data[: ROW.size]), more=more)

    def as_bytes(self) -> bytes:
        """As its bytes."""
        return ROW.pack(*self[:8]) + b"".join(MORE.pack(*place) for place in self.more)

    @property
    def captions(self) -> tuple[tuple[int, int], ...]:
        """Place and bytes of each."""
        return ((self.caption, self.caption_bytes), *self.more)

    def lies_within(self, size: int) -> bool:
        """Whether all parts lie in a shard of so many bytes, and one caption is there."""
        return (
            self.picture + self.picture_bytes <= size
            and all(place + count <= size for place, count in self.captions)
            and any(count for _, count in self.captions)
            and min(self.width, self.height) > 0
        )


def row_bytes(captions: int) -> int:
    """Bytes of a row with so many captions."""
    return ROW.size + MORE.size * (captions - 1)


def as_table(rows: bytes | bytearray, size: int) -> NDArray[np.void]:
    """Rows of `size` bytes each, without the further captions."""
    found = np.frombuffer(rows, np.uint8).reshape(-1, size)[:, : ROW.size]
    return np.ascontiguousarray(found).view(ROW_TYPE)[:, 0]
