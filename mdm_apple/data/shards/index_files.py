"""What lies in the folder of an index, and its table.

index.json: how the index was made. table.safetensors: of each shard its name, bytes and samples,
and the SHA-256 of its rows. rows/0012/0012345.safetensors: the rows of shard 12345.
A name ends where `name_ends` says; all names follow each other in `names`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdm_apple.storage.tensorfile import header_bytes

INDEX, TABLE, ROWS = "index.json", "table.safetensors", "rows"
VERSION = 1
ROWS_START = 256  # bytes before the first row
FILES_PER_FOLDER = 1000


@dataclass(frozen=True)
class IndexNote:
    """index.json.

    shards_from: the folder that names of shards count from, as a path from the index's folder.
    captions: see `CaptionChoice`. scores: fields of the .json. where: the condition that all
    samples fulfil. left_out: samples that are not used, by reason. unopened: members of shards that
    were not looked at, by suffix. skipped: shards that were refused, and why. table_sha256: of
    table.safetensors.
    """

    version: int
    shards_from: str
    captions: str
    scores: tuple[str, ...]
    shards: int
    samples: int
    table_sha256: str
    where: str | None = None
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    unopened: dict[str, int] = field(default_factory=dict[str, int])
    skipped: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Table:
    """One entry for each shard, in order; name_ends counts in `names`."""

    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    bytes: NDArray[np.int64]
    samples: NDArray[np.int64]
    rows_sha256: NDArray[np.uint8]

    @property
    def arrays(self) -> dict[str, NDArray[np.uint8] | NDArray[np.int64]]:
        """By the names that they have in the file."""
        return {
            "names": self.names,
            "name_ends": self.name_ends,
            "bytes": self.bytes,
            "samples": self.samples,
            "rows_sha256": self.rows_sha256,
        }

    def name(self, shard: int) -> str:
        """The path of a shard below the folder of all."""
        start = int(self.name_ends[shard - 1]) if shard else 0
        return self.names[start : int(self.name_ends[shard])].tobytes().decode(errors="replace")


def is_index(path: Path) -> bool:
    """Whether a folder is an index of shards."""
    return (path / INDEX).is_file() and (path / TABLE).is_file()


def rows_path(folder: Path, shard: int) -> Path:
    """The file with the rows of a shard."""
    return folder / f"{ROWS}/{shard // FILES_PER_FOLDER:04d}/{shard:07d}.safetensors"


def rows_file(rows: bytes | bytearray, size: int) -> bytes:
    """The bytes of such a file, with rows of `size` bytes; they begin at ROWS_START."""
    shape = (len(rows) // size, size)
    return header_bytes({"rows": ("U8", shape)}, {"format": "pt"}, ROWS_START) + rows
