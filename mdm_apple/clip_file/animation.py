"""A clip as an animated PNG, WebP or GIF: frames (N, H, W, 3) and a text in, bytes out."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from mdm_apple.clip_file.embedded_text import png_text, xmp
from mdm_apple.clip_file.timing import durations, exact
from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError

MAX_GIF_FPS = 50  # a GIF counts hundredths of a second, and browsers slow down below two
_PNG_START = b"\x89PNG\r\n\x1a\n"
# bits of a WebP's header, and of its frames: each replaces the one before
_ANIMATED, _HAS_XMP, _IN_PLACE = 0x02, 0x04, 0x02


def apng(frames: Pixels, fps: float, text: str | None) -> bytes:
    """Lossless. A program that knows no animated PNG shows the first frame."""
    count, height, width = frames.shape[:3]
    rate, number = exact(fps), itertools.count()

    def control() -> bytes:
        """A whole frame in place of the one before, shown for 1 / fps s."""
        place = (next(number), width, height, 0, 0)
        return _chunk(
            b"fcTL", struct.pack(">5I2H2B", *place, rate.denominator, rate.numerator, 0, 0)
        )

    first = list(_chunks(_still(frames[0], "PNG", pnginfo=png_text(text))))
    head = [_chunk(name, data) for name, data in first if name not in (b"IDAT", b"IEND")]
    out = [_PNG_START, head[0], _chunk(b"acTL", struct.pack(">2I", count, 0)), *head[1:], control()]
    out += [_chunk(name, data) for name, data in first if name == b"IDAT"]
    for frame in frames[1:]:
        out.append(control())
        for name, data in _chunks(_still(frame, "PNG")):
            if name == b"IDAT":
                out.append(_chunk(b"fdAT", struct.pack(">I", next(number)) + data))
    return b"".join([*out, _chunk(b"IEND", b"")])


def webp(frames: Pixels, fps: float, text: str | None) -> bytes:
    """Lossless. Put together here, because libwebp keeps no time of a clip that stands still."""
    count, height, width = frames.shape[:3]
    size = _three(width - 1) + _three(height - 1)
    out = [_riff(b"VP8X", bytes((_ANIMATED | (0 if text is None else _HAS_XMP), 0, 0, 0)) + size)]
    out.append(_riff(b"ANIM", b"\xff\xff\xff\xff" + bytes(2)))  # on white, repeated for ever
    for frame, milliseconds in zip(frames, durations(count, fps, 1000), strict=True):
        place = bytes(6) + size + _three(milliseconds) + bytes((_IN_PLACE,))
        out.append(_riff(b"ANMF", place + _still(frame, "WEBP")[12:]))
    if text is not None:
        out.append(_riff(b"XMP ", xmp(text)))
    return _riff(b"RIFF", b"".join((b"WEBP", *out)))


def gif(frames: Pixels, fps: float, text: str | None) -> bytes:
    """256 colours, the same for all frames: with a palette for each, still parts would flicker."""
    if fps > MAX_GIF_FPS:
        raise MdmError(f"fps: a GIF shows at most {MAX_GIF_FPS} frames a second, got {fps:g}.")
    count, height, width = frames.shape[:3]
    column = Image.fromarray(frames.reshape(count * height, width, 3))
    palettized = column.quantize(256, dither=Image.Dither.NONE)
    first, *others = [
        palettized.crop((0, k * height, width, (k + 1) * height)) for k in range(count)
    ]
    file = io.BytesIO()
    first.save(
        file,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=[10 * hundredths for hundredths in durations(count, fps, 100)],
        loop=0,
        comment=b"" if text is None else text.encode(),
    )
    return file.getvalue()


def _still(pixels: Pixels, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, lossless=True, **how)
    return file.getvalue()


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the chunks of a PNG that was written here."""
    place = len(_PNG_START)
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
