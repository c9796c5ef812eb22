"""A file of decoded clips: whole, or taken for absent."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.data.clips.cache import ClipCache
from mdm_apple.data.clips.decode import Wanted
from mdm_apple.data.dataset import DataError


def read(folder: Path, data: bytes) -> None:
    cache = ClipCache(Wanted(2, 4, 8.0, 3), folder)
    cache.path("").write_bytes(data)
    found = cache.find("")
    if found is None:
        raise DataError("clips: the file is damaged.")
    for number in range(found.clips):
        found.canvas(number)
