"""Decoded clips on disk: a file for each file of clips and each kind of model.

Input: the hash of a file, and what is wanted of it. Output: its canvases, one at a time. A file of
the cache is a line of JSON and raw pixels; one that is damaged counts as absent.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.decode import Decoded, Wanted
from mdm_apple.data.dataset import hash_fields
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError, atomic_file
from mdm_apple.storage.user_cache import user_cache

RULES = 1  # goes up when the same file gives other canvases
MAX_HEADER_BYTES = 1000
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Kept:
    """The clips of a file, on disk.

    clips: how many. size: width and height of a frame as it is seen. found: frames at the wanted
    steps. begin: bytes before the pixels.
    """

    path: Path
    side: int
    clips: int
    size: tuple[int, int]
    found: int
    begin: int

    def canvas(self, number: int) -> Pixels:
        """One of the clips: uint8 (side, side, 3). Raises FileError if the file is gone."""
        shape = (self.side, self.side, 3)
        try:
            with self.path.open("rb") as file:
                file.seek(self.begin + number * math.prod(shape))
                data = file.read(math.prod(shape))
        except OSError as error:
            raise FileError(
                f"{self.path}: decoded clips cannot be read; {system_reason(error)}"
            ) from None
        if len(data) < math.prod(shape):
            raise FileError(f"{self.path}: decoded clips are damaged; remove the file.")
        return np.frombuffer(data, np.uint8).reshape(shape)


class ClipCache:
    """The decoded clips of a kind of model.

    folder: where they lie; None for the user's folder for caches.
    """

    def __init__(self, wanted: Wanted, folder: Path | None = None) -> None:
        self._wanted = wanted
        self.folder = folder or user_cache("clips")

    def path(self, sha256: str) -> Path:
        """Where the clips of a file with this hash lie, or will."""
        settings = sorted(asdict(self._wanted).items())
        return self.folder / hash_fields(["clips", RULES, sha256, *settings])

    def find(self, sha256: str) -> Kept | None:
        """The clips of a file; None if they are not there or not whole."""
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                line = file.readline(MAX_HEADER_BYTES)
                kept = self._understood(path, line)
                header = json.loads(line)
                noted = header.pop("crc32")
                pixels, checksum = 0, _checksum_of(header)
                while piece := file.read(PIECE_BYTES):
                    pixels, checksum = pixels + len(piece), zlib.crc32(piece, checksum)
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return None
        whole = (kept.clips * self._wanted.side**2 * 3, noted)
        return kept if (pixels, checksum) == whole else None

    def keep(self, sha256: str, decoded: Decoded) -> Kept:
        """Write the clips of a file. Raises FileError."""
        path, data = self.path(sha256), decoded.pixels.tobytes()
        header = {"clips": len(decoded.pixels), "size": decoded.size, "found": decoded.found}
        checksum = zlib.crc32(data, _checksum_of(header))
        line = json.dumps({**header, "crc32": checksum}).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{path.parent}: cannot be made; {system_reason(error)}") from None
        with atomic_file(path) as file:
            file.write(line)
            file.write(data)
        return self._understood(path, line)

    def _understood(self, path: Path, line: bytes) -> Kept:
        header: dict[str, Any] = json.loads(line)
        width, height = map(int, header["size"])
        clips, found = int(header["clips"]), int(header["found"])
        if min(clips, found) < 0 or min(width, height) < 1:
            raise ValueError
        return Kept(path, self._wanted.side, clips, (width, height), found, len(line))


def _checksum_of(header: dict[str, Any]) -> int:
    """Where the checksum of the pixels begins, so that it covers the header too."""
    return zlib.crc32(json.dumps(header).encode())
