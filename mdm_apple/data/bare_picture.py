"""A picture file without its decoration: texts, sizes in print, damaged profiles and the like.

Input: the bytes of a PNG, JPEG or WebP file that a decoder refuses. Output: a smaller file of the
same pixels, for a second try; pixels and what they are made of stay as they are, damaged or not.
Sound EXIF and color profiles stay too, because they turn and color the picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PROFILE_BYTES = 16 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_TRANSPARENCY = {0: (2,), 2: (6,), 3: range(1, 257)}  # color type -> possible bytes of tRNS
_JPEG = b"\xff\xd8"
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_EXIF_AND_XMP = 0x08 | 0x04  # flags of VP8X


@dataclass(frozen=True)
class Bare:
    """A file of the format that Pillow calls so. profile: an ICC profile that it left out."""

    format: str
    data: bytes
    profile: bytes | None = None


def bare_picture(data: bytes) -> Bare | None:
    """The file without its decoration; None if it is of another format or of no shape."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def _png(data: bytes) -> Bare:
    kept, profile = [_PNG], None
    transparent: tuple[int, ...] | range = ()
    for kind, chunk in _png_chunks(data):
        body = chunk[8:-4]
        sound = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if kind == b"IHDR" and len(body) == 13:
            transparent = _TRANSPARENCY.get(body[9], ())
        fits = kind == b"eXIf" or (kind == b"tRNS" and len(body) in transparent)
        if kind in _PNG_PIXELS or (fits and sound):
            kept.append(chunk)
        elif kind == b"iCCP":  # decoders refuse long ones
            profile = _png_profile(body)
    return Bare("PNG", b"".join(kept), profile)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each chunk, up to the last or to what is none."""
    place = len(_PNG)
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        if not kind.isalpha():
            return
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        yield kind, data[place:end]
        if kind == b"IEND":
            return
        place = end


def _png_profile(body: bytes) -> bytes | None:
    """The profile, if it can be inflated and is not too long."""
    packed = body.partition(b"\0")[2]
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if packed[:1] == b"\0" and inflate.eof else None


def _jpeg(data: bytes) -> Bare | None:
    kept, place = [_JPEG], len(_JPEG)
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == 0xDA:  # the pixels, up to the end
            return Bare("JPEG", b"".join([*kept, data[place:]]))
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if end < place + 4 or end > len(data) or 0xD0 <= marker <= 0xD9:
            return None
        if _counts(marker, data[place + 4 : end]):
            kept.append(data[place:end])
        place = end
    return None


def _counts(marker: int, body: bytes) -> bool:
    """Whether a segment decides how pixels look."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0") and len(body) >= 14
    if marker == 0xE1:
        return body.startswith(b"Exif\0\0")
    if marker == 0xE2:
        return body.startswith(b"ICC_PROFILE\0") and len(body) > 14
    if marker == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _webp(data: bytes) -> Bare | None:
    kept: list[bytes] = []
    place = 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + size + size % 2
        chunk = data[place:end]
        whole = len(chunk) >= 8 + size
        if kind == b"VP8X" and size >= 1 and whole:
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_EXIF_AND_XMP]) + chunk[9:]
        if kind in _WEBP_PIXELS or (kind == b"ICCP" and whole):
            if not whole:
                return None
            kept.append(chunk + bytes(8 + size + size % 2 - len(chunk)))
        place = end
    body = b"WEBP" + b"".join(kept)
    return Bare("WEBP", b"RIFF" + len(body).to_bytes(4, "little") + body)
