"""A list of captions, one per line."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.text.captions import read_captions


def read(folder: Path, data: bytes) -> None:
    path = folder / "captions.txt"
    path.write_bytes(data)
    "\n".join(read_captions(path)).encode()
