"""Writes Core ML's weight file, whose layout conversion.execute.blob describes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..execute.blob import (
    ALIGNMENT,
    BITS,
    CODES,
    RECORD,
    SENTINEL,
    VERSION,
    WeightFile,
)

Bytes = NDArray[np.uint8]


class WeightFileWriter:
    """Appends records in order; each method returns its record's offset. Close at the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._count = 0
        self._file.write(bytes(ALIGNMENT))

    def add(self, data: bytes | NDArray[Any], dtype: str, count: int) -> int:
        """Append `count` values of `dtype`; types narrower than a byte must already be packed."""
        raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
        code = {name: number for number, name in CODES.items()}[dtype]
        return self._append(code, raw, 8 * len(raw) - BITS[dtype] * count)

    def copy(self, source: WeightFile, offset: int) -> int:
        """Append an unchanged copy of the record at `offset` of another file."""
        return self._append(*source.record(offset))

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(struct.pack("<II", self._count, VERSION))
        self._file.close()

    def _append(self, code: int, data: bytes, unused_bits: int) -> int:
        offset = self._file.tell()
        record = RECORD.pack(SENTINEL, code, len(data), offset + ALIGNMENT, unused_bits)
        self._file.write(record.ljust(ALIGNMENT, b"\0"))
        self._file.write(data)
        self._file.write(bytes(-len(data) % ALIGNMENT))
        self._count += 1
        return offset


def pack(indices: Bytes, bits: int) -> Bytes:
    """Pack numbers below 2^bits, given one per byte, from the least significant bit upwards."""
    if bits == 8:
        return indices
    per_word, word_bytes = {1: (8, 1), 2: (4, 1), 3: (8, 3), 4: (2, 1), 6: (4, 3)}[bits]
    padded = np.zeros(-(-indices.size // per_word) * per_word, np.uint8)
    padded[: indices.size] = indices
    columns = padded.reshape(-1, per_word)
    words = np.zeros(len(columns), np.uint32)
    for k in range(per_word):
        words |= columns[:, k].astype(np.uint32) << np.uint32(k * bits)
    packed = words.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :word_bytes].reshape(-1)
    return packed[: (indices.size * bits + 7) // 8]


def record_bytes(data: int) -> int:
    """Size in the file of a record with `data` bytes of data."""
    return ALIGNMENT + data + -data % ALIGNMENT
