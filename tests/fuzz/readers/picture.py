"""A picture of the user's: its size from the header, then the decoded square."""

from __future__ import annotations

from pathlib import Path

from fuzz.readers.recipe import START, mended

from mdm_apple.data.read_picture import picture_size, read_square


def read(folder: Path, data: bytes) -> None:
    path = folder / "picture.png"  # decoders go by the bytes, not by the name
    path.write_bytes(mended(data) if data.startswith(START) else data)
    picture_size(path)
    read_square(path, 16)
