"""An index that is open: which shard holds a sample, and where in it.

The table is read when the index is opened. The rows of a shard are checked against the table when
one of them is first asked for; later a single row is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.strict_json import read_config
from mdm_apple.data.dataset import DataError
from mdm_apple.data.read_picture import shown
from mdm_apple.data.shards.caption_field import CaptionChoice
from mdm_apple.data.shards.index_files import (
    INDEX,
    ROWS_START,
    TABLE,
    VERSION,
    IndexNote,
    Table,
    rows_file,
    rows_path,
)
from mdm_apple.data.shards.rows import Row, row_bytes
from mdm_apple.data.shards.samples import MAX_SAMPLES
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError, file_sha256
from mdm_apple.storage.tensorfile import read_tensors

MAX_SHARD_BYTES = 1 << 48

_KINDS = {"names": "u1", "name_ends": "<i8", "bytes": "<i8", "samples": "<i8", "rows_sha256": "u1"}
_DAMAGED = "the index is damaged; make it anew with mdm index"


class OpenIndex:
    """An index of shards.

    note: how it was made. captions: where they stand. starts: number of the first sample of each
    shard, and of all samples.
    Raises DataError for a folder that is no index, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.note = _note(folder)
        self._table = _table(folder, self.note)
        self.starts = np.concatenate([[0], np.cumsum(self._table.samples)])
        if int(self.starts[-1]) != self.note.samples or not self.note.samples:
            raise _damaged(folder)
        self._root = Path(os.path.normpath(folder.resolve() / self.note.shards_from))
        self.captions = CaptionChoice.of(self.note.captions)
        self._row_bytes = row_bytes(len(self.captions.fields))
        self._checked = bytearray(self.note.shards)

    def __len__(self) -> int:
        return self.note.samples

    @property
    def samples(self) -> NDArray[np.int64]:
        """Samples of each shard."""
        return self._table.samples

    def shard_of(self, sample: int) -> int:
        """The shard that holds a sample."""
        return int(self.starts.searchsorted(sample, "right")) - 1

    def shard_bytes(self, shard: int) -> int:
        """Bytes of a shard when it was indexed."""
        return int(self._table.bytes[shard])

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self._root / self._table.name(shard)

    def row(self, sample: int) -> Row:
        """Where a sample stands in its shard. Raises DataError if the index is damaged."""
        shard = self.shard_of(sample)
        path = rows_path(self.folder, shard)
        if not self._checked[shard]:
            self._check_rows(shard, path)
            self._checked[shard] = True
        size = self._row_bytes
        data = _read(path, ROWS_START + size * (sample - int(self.starts[shard])), size)
        if len(data) == size:
            row = Row.of(data)
            if row.lies_within(self.shard_bytes(shard)):
                return row
        raise _damaged(path)

    def _check_rows(self, shard: int, path: Path) -> None:
        rows = self._row_bytes
        data = _read(path, 0, ROWS_START + rows * int(self.samples[shard]) + 1)
        digest = hashlib.sha256(data).digest()
        if digest != self._table.rows_sha256[shard].tobytes() or data != rows_file(
            data[ROWS_START:], rows
        ):
            raise _damaged(path)


def _note(folder: Path) -> IndexNote:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{shown(folder)}: is no index of shards; make one with mdm index.")
    note = read_config(IndexNote, path)
    if note.version != VERSION:
        raise DataError(
            f"{shown(path)}: has version {note.version}, and this program reads {VERSION}; make "
            "the index anew with mdm index."
        )
    return note


def _table(folder: Path, note: IndexNote) -> Table:
    path = folder / TABLE
    if file_sha256(path) != note.table_sha256:
        raise _damaged(path)
    found: dict[str, Any] = read_tensors(path)
    count = note.shards
    shapes = {field.name: (count,) for field in dataclasses.fields(Table)}
    shapes |= {"rows_sha256": (count, 32)}
    if {name: array.dtype.str.lstrip("|") for name, array in found.items()} != _KINDS:
        raise _damaged(path)
    if any(found[name].shape != shape for name, shape in shapes.items() if name != "names"):
        raise _damaged(path)
    table = Table(**found)
    ends, limits = table.name_ends, ((table.bytes, MAX_SHARD_BYTES), (table.samples, MAX_SAMPLES))
    if not count or any(int(some.min()) < 0 or int(some.max()) > most for some, most in limits):
        raise _damaged(path)
    if int(np.diff(ends, prepend=0).min()) < 1 or int(ends[-1]) != table.names.size:
        raise _damaged(path)
    if (table.names < ord(" ")).any():
        raise _damaged(path)
    if not _lie_below(table):
        raise DataError(f"{shown(path)}: names a shard outside its folder; {_DAMAGED}.")
    return table


def _lie_below(table: Table) -> bool:
    """Whether all names stay below the folder of shards; looked at together, as there are many."""
    starts = np.concatenate([[0], table.name_ends[:-1]])
    if (table.names[starts] == ord("/")).any():
        return False
    joined = table.names.tobytes()
    if b".." not in joined:
        return True
    return not any(".." in Path(table.name(shard)).parts for shard in range(len(starts)))


def _read(path: Path, place: int, count: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, count, place)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileError(f"{shown(path)}: cannot be read; {system_reason(error)}") from None


def _damaged(path: Path) -> DataError:
    return DataError(f"{shown(path)}: {_DAMAGED}.")
