"""pictures.jsonl: which pictures a run began with, in their order, and which it left out.

A save names the hash of this file, so that a file of another run is never taken for its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mdm_apple.data.dataset import Dataset, File
from mdm_apple.storage.files import atomic_file

PICTURES = "pictures.jsonl"  # in the folder of a run
MAX_RECORD_BYTES = 1 << 30


@dataclass(frozen=True)
class Noted:
    """A picture as it was when the run began."""

    file: File
    caption: str


@dataclass(frozen=True)
class Record:
    """The pictures of a run, and the names of those that were bad when it began."""

    pictures: list[Noted]
    left_out: list[str]

    @staticmethod
    def of(dataset: Dataset) -> Record:
        """All pictures of a folder."""
        pairs = zip(dataset.files, dataset.captions(), strict=True)
        return Record([Noted(*pair) for pair in pairs], list(dataset.left_out))

    def as_file(self) -> bytes:
        """One JSON object per line."""
        rows: list[Mapping[str, object]] = [
            {
                "file_name": noted.file.name,
                "text": noted.caption,
                "bytes": noted.file.bytes,
                "mtime_ns": noted.file.mtime_ns,
            }
            for noted in self.pictures
        ]
        rows.extend({"file_name": name, "left_out": True} for name in self.left_out)
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def sha256(self) -> str:
        """The hash of its file."""
        return hashlib.sha256(self.as_file()).hexdigest()


def write_record(folder: Path, record: Record) -> None:
    """Write pictures.jsonl. Raises FileError."""
    with atomic_file(folder / PICTURES) as file:
        file.write(record.as_file())


def read_record(folder: Path, sha256: object) -> Record | None:
    """The record with this hash; None if the folder holds none, or another one."""
    path = folder / PICTURES
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    record = Record([], [])
    try:
        for line in data.splitlines():
            _add(record, json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return record


def _add(record: Record, row: object) -> None:
    fields: Mapping[str, Any] = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    name = str(fields["file_name"])
    if "left_out" in fields:
        record.left_out.append(name)
    else:
        file = File(name, int(fields["bytes"]), int(fields["mtime_ns"]))
        record.pictures.append(Noted(file, str(fields["text"])))
