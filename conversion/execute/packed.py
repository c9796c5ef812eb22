"""Decodes numbers narrower than a byte, and palettes of them, by table, many bits at a time.

A code is a byte, which holds eight 1-bit to one 8-bit numbers, or twelve bits, which hold four
3-bit or two 6-bit numbers. It indexes a table of its decoded numbers, or of their palette values.
So a palettized weight becomes fp32 in one pass over its packed bytes, without intermediate arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from mdm_apple.config.types import NumpyArray

Bytes = npt.NDArray[np.uint8]

CODE_BITS = {1: 8, 2: 8, 4: 8, 8: 8, 3: 12, 6: 12}  # bits of a code, by the bits of a number
CHUNK = 3 << 15  # bytes; a multiple of 3, small enough for the processor's cache


@dataclass(frozen=True)
class Packed:
    """Unsigned numbers of 1 to 8 bits as stored, least significant bits first."""

    data: Bytes
    bits: int
    shape: tuple[int, ...]

    def unpack(self) -> Bytes:
        """One number per byte, in `shape`."""
        count = int(np.prod(self.shape))
        return unpack_bits(self.data, self.bits, count).reshape(self.shape)


def unpack_bits(data: Bytes, bits: int, count: int) -> Bytes:
    """The first `count` numbers of packed bytes, one per byte."""
    if bits == 8:
        return data[:count].copy()
    out = np.empty(count, np.uint8)
    take_values(data, bits, np.arange(1 << bits, dtype=np.uint8), out)
    return out


def take_values(data: Bytes, bits: int, palette: NumpyArray, out: NumpyArray) -> None:
    """Fill the flat `out` with palette[number] for the first numbers of packed bytes.

    Args:
        palette: (2^bits,), of the type of `out`.
    """
    table = palette[_codes(bits)]  # (2^code bits, numbers per code)
    per_code = table.shape[1]
    codes_per_chunk = CHUNK if CODE_BITS[bits] == 8 else CHUNK // 3 * 2
    whole = len(out) // per_code * per_code
    rows = out[:whole].reshape(-1, per_code)
    for k in range(0, len(rows), codes_per_chunk):
        some = rows[k : k + codes_per_chunk]
        np.take(table, _read_codes(data, bits, k, len(some)), axis=0, out=some, mode="clip")
    if whole < len(out):
        even = len(rows) & ~1
        last = table[_read_codes(data, bits, even, len(rows) - even + 1)[-1]]
        out[whole:] = last[: len(out) - whole]


@cache
def _codes(bits: int) -> Bytes:
    """The numbers in each code."""
    size = CODE_BITS[bits]
    shifts = np.arange(0, size, bits, dtype=np.uint16)
    codes = np.arange(1 << size, dtype=np.uint16)[:, None]
    return ((codes >> shifts) & ((1 << bits) - 1)).astype(np.uint8)


def _read_codes(data: Bytes, bits: int, first: int, count: int) -> NumpyArray:
    if CODE_BITS[bits] == 8:
        return data[first : first + count]
    start, stop = first * 3 // 2, -(-(first + count) * 3 // 2)  # `first` is even
    part = data[start:stop]
    if len(part) % 3:
        part = np.concatenate([part, np.zeros(-len(part) % 3, np.uint8)])
    one, two, three = (part[k::3].astype(np.uint16) for k in range(3))
    pairs = np.empty((len(one), 2), np.uint16)
    pairs[:, 0] = one | (two & 15) << 8
    pairs[:, 1] = two >> 4 | three << 4
    return pairs.reshape(-1)[:count]


def look_up_packed(indices: Packed, lut: NumpyArray) -> NumpyArray | None:
    """fp32 values of palettes lut (*groups, 2^bits, 1); None if plain indexing is as good.

    The numbers of one palette must fill whole bytes and be many compared with the table's size.
    """
    rank, groups = len(indices.shape), lut.shape[:-2]
    if len(groups) != rank or lut.shape[-2:] != (1 << indices.bits, 1):
        return None
    divided = [axis for axis in range(rank) if groups[axis] > 1]
    if len(divided) > 1 or any(indices.shape[a] % groups[a] for a in range(rank)):
        return None
    axis = divided[0] if divided else 0
    outer, count = int(np.prod(indices.shape[:axis])), int(np.prod(indices.shape))
    if rank == 0 or count == 0:
        return None
    pieces = outer * groups[axis]
    size = count // pieces
    unit = 3 if CODE_BITS[indices.bits] == 12 else 1
    if pieces > 1 and (size * indices.bits % (8 * unit) or size < 1 << CODE_BITS[indices.bits]):
        return None
    palettes = lut.astype(np.float32).reshape(groups[axis], -1)
    out = np.empty((pieces, size), np.float32)
    length = size * indices.bits // 8
    for k in range(pieces):
        data = indices.data[k * length :]
        take_values(data, indices.bits, palettes[k % groups[axis]], out[k])
    return out.reshape(indices.shape)
