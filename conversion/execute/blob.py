"""Core ML's weight file: numbers by offset. Every size is checked against the file before use.

Layout (little endian): a 64-byte header; then, at 64-byte boundaries, a 64-byte record for each
tensor: sentinel, type code, size of the data in bytes, offset of the data, unused bits in its last
byte. Types narrower than a byte are packed from the least significant bit upwards, without gaps.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mdm_apple.config.types import NumpyArray
from mdm_apple.storage.files import is_lfs_pointer

from .errors import ExecutionError
from .packed import Packed, unpack_bits

RECORD = struct.Struct("<IIQQQ")
SENTINEL = 0xDEADBEEF
VERSION = 2
ALIGNMENT = 64

CODES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}

BITS = {
    "bool": 8,
    "fp16": 16,
    "fp32": 32,
    "fp64": 64,
    "int4": 4,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "int64": 64,
    "uint1": 1,
    "uint2": 2,
    "uint3": 3,
    "uint4": 4,
    "uint6": 6,
    "uint8": 8,
    "uint16": 16,
    "uint32": 32,
    "uint64": 64,
}

_NUMPY = {
    "bool": "?",
    "fp16": "<f2",
    "fp32": "<f4",
    "fp64": "<f8",
    "int8": "i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
}


class WeightFile:
    """A weight file, mapped read-only; `read` returns views where the stored form allows it."""

    def __init__(self, path: Path) -> None:
        """Raises ExecutionError unless the file is a weight file of a known version."""
        self.name = path.name
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size < ALIGNMENT:
                    raise ExecutionError(
                        f"{path}: expected a weight file, got {self.size} bytes; convert again."
                    )
                if is_lfs_pointer(file.read(ALIGNMENT)):
                    raise ExecutionError(
                        f"{path}: a Git LFS pointer, not the file itself; run git lfs pull."
                    )
                self._bytes = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ExecutionError(f"{path}: cannot be read ({error.strerror}).") from None
        version = int.from_bytes(self._bytes[4:8], "little")
        if version != VERSION:
            raise ExecutionError(
                f"{path}: expected a weight file of version {VERSION}, got {version}."
            )

    def read(self, offset: int, dtype: str, count: int) -> NumpyArray:
        """`count` values of `dtype` from the record at `offset`, flat; sub-byte types one per byte.

        Raises ExecutionError if record or data lie outside the file or contradict the request.
        """
        return unpack(self._stored(offset, dtype, count), dtype, count)

    def read_packed(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Packed:
        """Numbers of an unsigned type of up to 8 bits, left packed. Raises as `read` does."""
        return Packed(self._stored(offset, dtype, math.prod(shape)), BITS[dtype], shape)

    def _stored(self, offset: int, dtype: str, count: int) -> npt.NDArray[np.uint8]:
        start, stored = self._record(offset, dtype)
        expected = packed_size(dtype, count)
        if stored != expected:
            raise ExecutionError(
                f"{self.name}: the record at {offset} holds {stored} bytes, but {count} values of "
                f"type {dtype} need {expected}; the package is damaged."
            )
        return np.frombuffer(self._bytes, np.uint8, stored, start)

    def record(self, offset: int) -> tuple[int, bytes, int]:
        """Type code, stored bytes and unused bits of the record at `offset`, for a verbatim copy.

        Raises ExecutionError as `read` does.
        """
        code, stored, start, unused = self._locate(offset)
        return code, self._bytes[start : start + stored], unused

    def _record(self, offset: int, dtype: str) -> tuple[int, int]:
        code, stored, start, _ = self._locate(offset)
        if CODES.get(code) != dtype:
            raise ExecutionError(
                f"{self.name}: the record at {offset} holds {CODES.get(code, f'type {code}')}, "
                f"but the program expects {dtype}; the package is damaged."
            )
        return start, stored

    def _locate(self, offset: int) -> tuple[int, int, int, int]:
        """Type code, size, start of the data and unused bits."""
        if offset % ALIGNMENT or not ALIGNMENT <= offset <= self.size - ALIGNMENT:
            raise ExecutionError(
                f"{self.name}: a weight at offset {offset} lies outside the file of {self.size} "
                "bytes or off its grid; the file is truncated or the package damaged."
            )
        sentinel, code, stored, start, unused = RECORD.unpack_from(self._bytes, offset)
        if sentinel != SENTINEL:
            raise ExecutionError(
                f"{self.name}: no weight record at offset {offset}; the package is damaged."
            )
        if start < ALIGNMENT or start + stored > self.size:
            raise ExecutionError(
                f"{self.name}: the data of the record at {offset} end at {start + stored}, but "
                f"the file has {self.size} bytes; the file is truncated."
            )
        return code, stored, start, unused


def packed_size(dtype: str, count: int) -> int:
    """Bytes that `count` values of `dtype` occupy when packed."""
    return (count * BITS[dtype] + 7) // 8


def unpack(data: npt.NDArray[np.uint8], dtype: str, count: int) -> NumpyArray:
    """Packed bytes as `count` numbers: a view for whole-byte types, else one (u)int8 per value."""
    if dtype in _NUMPY:
        return data.view(_NUMPY[dtype])
    bits = BITS[dtype]
    out = unpack_bits(data, bits, count)
    if dtype.startswith("int"):  # move the sign bit to the top and shift back arithmetically
        return (out << (8 - bits)).view(np.int8) >> (8 - bits)
    return out
