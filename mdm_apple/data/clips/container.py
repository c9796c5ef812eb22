"""Which kind of file a clip is, from its first bytes alone.

The name of a file says nothing, and no decoder is asked: one that guesses opens a text file as a
list of other files.
"""

from __future__ import annotations

from typing import Literal

Container = Literal["gif", "webp", "png", "mov", "matroska"]

START_BYTES = 12  # that decide


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
