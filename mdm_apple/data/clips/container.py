"""Which kind of file a clip is, from its first bytes alone.

The name of a file says nothing, and no decoder is asked: one that guesses opens a text file as a
list of other files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

Container = Literal["gif", "webp", "png", "mov", "matroska"]

START_BYTES = 12  # that decide
MAX_CHUNKS = 1000  # of a PNG that are looked at
ANIMATED = 0x02  # a flag of WebP


def container_of(start: bytes) -> Container | None:
    """The container that begins so: the first START_BYTES of a file; None for any other file."""
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start[4:8] == b"ftyp":
        return "mov"
    if start[:4] == b"\x1aE\xdf\xa3":  # EBML, of .mkv and .webm
        return "matroska"
    return None


def clip_container(path: Path) -> Container | None:
    """The container of a file that says that it moves, or may; None for pictures and other files.

    A GIF may always. Raises OSError.
    """
    with path.open("rb") as file:
        container = container_of(file.read(START_BYTES))
        if container == "png":
            return container if _says_frames(file) else None
        if container == "webp":
            more = file.read(9)
            return container if more[:4] == b"VP8X" and more[8:9] and more[8] & ANIMATED else None
        return container


def _says_frames(png: BinaryIO) -> bool:
    """Whether a PNG counts its frames before its pixels, as it must."""
    png.seek(8)
    for _ in range(MAX_CHUNKS):
        head = png.read(8)
        if head[4:] == b"acTL":
            return True
        if len(head) < 8 or head[4:] == b"IDAT":
            return False
        png.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False
