"""Frames of the bundle server's protocol (docs/serve_bundle.md); lengths are checked before use.

A frame is a 32-bit length followed by that many bytes: one byte for the kind, then the payload.
Numbers are little-endian. A text is a 16-bit length and UTF-8. A tensor is its name, one byte each
for type and rank, 32-bit lengths of its axes, and its numbers in row-major order.
"""

from __future__ import annotations

import math
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdm_apple.errors import MdmError

MAX_FRAME = 256 << 20
MAX_RANK = 5
TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<i4")}


class ProtocolError(MdmError):
    """A frame that the protocol does not allow; the connection cannot continue."""


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Kind and payload of the next frame; None at the end. Raises ProtocolError."""
    head = stream.read(4)
    if not head:
        return None
    if len(head) < 4:
        raise ProtocolError("frame: the stream ends within it; send it whole.")
    (length,) = struct.unpack("<I", head)
    if not 1 <= length <= MAX_FRAME:
        raise ProtocolError(f"frame: has {length} bytes; expected 1 to {MAX_FRAME}.")
    body = stream.read(length)
    if len(body) < length:
        raise ProtocolError("frame: the stream ends within it; send it whole.")
    return body[:1], body[1:]


def write_frame(stream: BinaryIO, kind: bytes, payload: bytes = b"") -> None:
    """Write and flush one frame."""
    if len(payload) >= MAX_FRAME:
        raise ProtocolError(
            f"answer: has {len(payload)} bytes, and a frame holds at most {MAX_FRAME}."
        )
    stream.write(struct.pack("<I", 1 + len(payload)) + kind + payload)
    stream.flush()


class Reader:
    """Takes a payload apart from front to back. Raises ProtocolError where it is too short."""

    def __init__(self, payload: bytes) -> None:
        self._payload, self._position = payload, 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._payload):
            raise ProtocolError(
                "frame: ends before its last value; send all values of the request."
            )
        part = self._payload[self._position : end]
        self._position = end
        return part

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("H")).decode()
        except UnicodeDecodeError:
            raise ProtocolError("frame: a text is not UTF-8; encode it so.") from None

    def tensor(self) -> tuple[str, NDArray[Any]]:
        name, kind, rank = self.text(), self.number("B"), self.number("B")
        if kind not in TYPES or rank > MAX_RANK:
            raise ProtocolError(
                f"frame: a tensor of type {kind} and rank {rank}; see docs/serve_bundle.md."
            )
        shape = tuple(self.number("I") for _ in range(rank))
        raw = self.take(math.prod(shape) * TYPES[kind].itemsize)
        return name, np.frombuffer(raw, TYPES[kind]).reshape(shape)

    def finish(self) -> None:
        if self._position != len(self._payload):
            raise ProtocolError("frame: goes on after its last value; send nothing more.")


def pack_text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 0xFFFF:
        data = data[:0xFFFF].decode(errors="ignore").encode()
    return struct.pack("<H", len(data)) + data


def pack_tensor(name: str, array: NDArray[Any]) -> bytes:
    """Fractions as float32, whole numbers as int32."""
    kind = 1 if np.issubdtype(array.dtype, np.integer) else 0
    head = struct.pack(f"<BB{array.ndim}I", kind, array.ndim, *array.shape)
    return pack_text(name) + head + np.ascontiguousarray(array, TYPES[kind]).tobytes()
