"""A picture of the user's: its size from the header, then the decoded square."""

from __future__ import annotations

from pathlib import Path

from fuzz.readers.recipe import START, mended

from mdm_apple.data.read_picture import read_square, shorter_side


def read(folder: Path, data: bytes) -> None:
    path = folder / "picture.png"  # decoders go by the bytes, not by the name
    path.write_bytes(mended(data) if data.startswith(START) else data)
    shorter_side(path)
    read_square(path, 16)
