"""The recipe inside a picture, as the file stands and with its checksums mended."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

from mdm_apple.errors import MdmError
from mdm_apple.sampling.pictures import read_recipe

START = b"\x89PNG\r\n\x1a\n"


def read(folder: Path, data: bytes) -> None:
    (folder / "as_it_is.png").write_bytes(data)
    with suppress(MdmError):
        read_recipe(folder / "as_it_is.png")
    (folder / "mended.png").write_bytes(mended(data))
    read_recipe(folder / "mended.png")


def mended(data: bytes) -> bytes:
    """Every chunk with the checksum that it should have: else hardly any would be looked into."""
    out, place = [data[: len(START)]], len(START)
    while place + 12 <= len(data):
        length = min(int.from_bytes(data[place : place + 4], "big"), len(data) - place - 12)
        body = data[place + 4 : place + 8 + length]
        out.append(struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(out)
