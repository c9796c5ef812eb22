"""Shards become an index: a folder of a few numbers for each sample, by which training finds it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mdm_apple.config.strict_json import to_json
from mdm_apple.data.dataset import DataError
from mdm_apple.data.listing import counted
from mdm_apple.data.read_picture import shown
from mdm_apple.data.shards.caption_field import CaptionChoice
from mdm_apple.data.shards.condition import Condition
from mdm_apple.data.shards.index_files import (
    INDEX,
    TABLE,
    VERSION,
    IndexNote,
    Table,
    rows_file,
    rows_path,
)
from mdm_apple.data.shards.index_shard import index_shard
from mdm_apple.data.shards.list_shards import list_shards
from mdm_apple.data.shards.rows import SCORES, row_bytes
from mdm_apple.data.shards.shard_file import BadShardError
from mdm_apple.storage.tensorfile import write_bytes, write_tensors
from mdm_apple.storage.whole_folder import whole_folder

BY_WHERE = "numbers that --where excludes"


@dataclass(frozen=True)
class IndexOptions:
    """captions: see `CaptionChoice`. scores: up to two fields of the .json with numbers.

    skip_bad_shards: so many shards may be refused, and are left out. where: a condition that all
    samples fulfil, of sides and scores; see `condition`.
    """

    captions: str = "txt"
    scores: tuple[str, ...] = ()
    skip_bad_shards: int = 0
    where: str | None = None

    def __post_init__(self) -> None:
        CaptionChoice.of(self.captions)
        if len(self.scores) > SCORES or len(set(self.scores)) < len(self.scores):
            raise DataError(f"scores: expected up to {SCORES} different fields of the .json.")
        if self.skip_bad_shards < 0:
            raise DataError(f"skip_bad_shards: expected 0 or more, got {self.skip_bad_shards}.")
        if self.where is not None:
            Condition.of(self.where, self.scores)


@dataclass
class _Table:
    """The table while it grows."""

    names: list[str] = field(default_factory=list[str])
    sizes: list[int] = field(default_factory=list[int])
    samples: list[int] = field(default_factory=list[int])
    hashes: bytearray = field(default_factory=bytearray)

    def add(self, name: str, size: int, samples: int, file: bytes) -> None:
        self.names.append(name)
        self.sizes.append(size)
        self.samples.append(samples)
        self.hashes += hashlib.sha256(file).digest()

    def finished(self) -> Table:
        names = [name.encode() for name in self.names]
        return Table(
            np.frombuffer(b"".join(names), np.uint8),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.array(self.sizes, np.int64),
            np.array(self.samples, np.int64),
            np.frombuffer(bytes(self.hashes), np.uint8).reshape(-1, 32),
        )


def write_index(
    shards: Sequence[str],
    out: Path,
    options: IndexOptions | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> IndexNote:
    """Read the headers of all shards once, and write the folder `out`.

    Args:
        shards: folders, patterns, text files of paths, or shards.
        progress: called with the shards done, and their number.

    Raises DataError for a bad shard beyond those that may be skipped, and if no sample can be used;
    FileError if `out` is occupied or cannot be written.
    """
    options = options or IndexOptions()
    paths = list_shards(shards)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    captions = CaptionChoice.of(options.captions)
    size, where = row_bytes(len(captions.fields)), options.where
    condition = None if where is None else Condition.of(where, options.scores)
    table, left_out, unopened = _Table(), Counter[str](), Counter[str]()
    skipped: dict[str, str] = {}
    with whole_folder(out, INDEX, overwrite) as folder:
        for done, path in enumerate(paths):
            progress(done, len(paths))
            name = _name(path, root)
            try:
                shard = index_shard(path, captions, options.scores)
            except BadShardError as error:
                skipped[name] = f"byte {error.byte}: {error.reason}"
                if len(skipped) > options.skip_bad_shards:
                    raise _too_many(error, len(skipped)) from None
                continue
            if condition is not None:
                rows = condition.kept(shard.rows, size)
                if len(rows) < len(shard.rows):
                    shard.left_out[BY_WHERE] += (len(shard.rows) - len(rows)) // size
                shard.rows = bytearray(rows)
            file = rows_file(shard.rows, size)
            place = rows_path(folder, len(table.names))
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, file)
            table.add(name, shard.size, len(shard.rows) // size, file)
            left_out += shard.left_out
            unopened += shard.unopened
        progress(len(paths), len(paths))
        if not sum(table.samples):
            raise _nothing(paths, left_out)
        note = IndexNote(
            version=VERSION,
            shards_from=os.path.relpath(root, out.absolute().parent.resolve() / out.name),
            captions=str(captions),
            scores=options.scores,
            shards=len(table.names),
            samples=sum(table.samples),
            table_sha256=write_tensors(folder / TABLE, table.finished().arrays).sha256,
            where=where,
            left_out=dict(left_out.most_common()),
            unopened=dict(unopened.most_common()),
            skipped=skipped,
        )
        write_bytes(folder / INDEX, to_json(note).encode())
    return note


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    if not name.isprintable():
        raise DataError(f"{shown(path)}: the name of a shard cannot be printed; rename it.")
    return name


def _too_many(error: BadShardError, count: int) -> DataError:
    if count == 1:
        return error
    return DataError(
        f"{str(error).removesuffix('.')}; it is bad shard number {count}, more than may be skipped."
    )


def _nothing(paths: Sequence[Path], left_out: Counter[str]) -> DataError:
    reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.most_common(3))
    return DataError(
        f"shards: no sample of {counted(len(paths), 'shard')} can be used"
        f"{f' ({reasons})' if reasons else ''}; a sample is a .jpg, .jpeg, .png or .webp and a "
        ".txt of one name, or a .json with --captions json.FIELD."
    )
