"""Width and height of a JPEG, PNG or WebP picture from its first bytes; nothing is decoded.

Source: ITU T.81, B.2.2 (frame header); PNG specification, 11.2.2 (IHDR); RFC 9649, 2.5 to 2.7
(WebP); RFC 6386, 9.1 (VP8 frame header).
"""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int, int], bytes]  # from a place on, so many bytes, fewer at the end

_MAX_SEGMENTS = 1000  # before the frame header of a JPEG
# frame headers have the markers C0 to CF, but these are tables and an extension
_NO_FRAME = (0xC4, 0xC8, 0xCC)


def picture_sides(read: Read) -> tuple[int, int] | None:
    """Width and height as stored; None if the bytes are those of no such picture."""
    start = read(0, 32)
    if start.startswith(b"\xff\xd8"):
        sides = _jpeg(read)
    elif start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR" and len(start) >= 24:
        sides = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP" and len(start) >= 30:
        sides = _webp(start)
    else:
        sides = None
    return sides if sides and min(sides) > 0 else None


def _jpeg(read: Read) -> tuple[int, int] | None:
    place = 2
    for _ in range(_MAX_SEGMENTS):
        segment = read(place, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            return None
        marker = segment[1]
        if marker == 0xFF:  # padding
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
        elif 0xD0 <= marker <= 0xDA or marker < 0xC0:  # pixels, or a marker without a length
            return None
        else:
            place += 2 + int.from_bytes(segment[2:4], "big")
    return None


def _webp(start: bytes) -> tuple[int, int] | None:
    kind = start[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(start[24:27], "little"),
            1 + int.from_bytes(start[27:30], "little"),
        )
    if kind == b"VP8L" and start[20] == 0x2F:
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a":
        return (
            int.from_bytes(start[26:28], "little") & 0x3FFF,
            int.from_bytes(start[28:30], "little") & 0x3FFF,
        )
    return None
