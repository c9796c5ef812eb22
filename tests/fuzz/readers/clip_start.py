"""The first bytes of a file of clips, by which alone its decoder is chosen."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.data.clips.container import START_BYTES, container_of
from mdm_apple.data.dataset import DataError

SIGNATURES = {
    "gif": (b"GIF8",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "webp": (b"RIFF", b"WEBP"),
    "mov": (b"ftyp",),
    "matroska": (b"\x1aE\xdf\xa3",),
}


def read(folder: Path, data: bytes) -> None:
    del folder  # nothing is opened
    found = container_of(data[:START_BYTES])
    if found is None:
        raise DataError("clip: it is no GIF, WebP, PNG, MP4, MOV, WebM or MKV file.")
    if not all(part in data[:START_BYTES] for part in SIGNATURES[found]):
        raise AssertionError(f"taken for {found}: {data[:START_BYTES]!r}")
    if found != container_of(data):
        raise AssertionError("what follows the start changed the container")
