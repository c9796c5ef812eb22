"""A clip, of ours or of the user's: its text, its kind, and all of its frames."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fuzz.readers.recipe import START, mended

from mdm_apple.clip_file.embedded_text import embedded_text
from mdm_apple.clip_file.read import read_clip
from mdm_apple.data.clips.container import clip_container
from mdm_apple.errors import MdmError


def read(folder: Path, data: bytes) -> None:
    path = folder / "clip"  # decoders go by the bytes, not by the name
    path.write_bytes(mended(data) if data.startswith(START) else data)
    with suppress(MdmError):
        embedded_text(path)
    clip_container(path)
    read_clip(path, 8)
