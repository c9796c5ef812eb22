"""The captioned pictures of an index of shards, read by number."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import (
    MAX_CACHE_BYTES,
    BadPictureError,
    DataError,
    Item,
    KeptPictures,
    evenly_spread,
    hash_fields,
)
from mdm_apple.data.read_picture import InMemory, read_square, shown
from mdm_apple.data.shards.caption_field import UnusableCaptionError
from mdm_apple.data.shards.open_index import OpenIndex
from mdm_apple.data.shards.rows import Row
from mdm_apple.data.shards.shard_file import ShardFile
from mdm_apple.data.shards.tar import member_name_at
from mdm_apple.storage.files import FileError

BadPictures = Literal["refuse", "replace"]

MAX_LISTED = 1 << 16  # captions that are read to learn words from
MAX_REPLACED = 0.001  # share of the pictures drawn
ALLOWED = 3  # replacements besides
TRIES = 8  # other pictures of a shard for one that is bad
NAMED = 10  # replaced pictures whose names are kept


class ShardPictures:
    """The pictures of an index; see `dataset.Pictures`.

    Args:
        bad_pictures: what happens at a picture that cannot be decoded. "replace": another one of
            its shard, drawn by the row's own numbers, takes its place.

    replaced: how many were replaced so far. replaced_names: of the first of them.
    """

    def __init__(self, index: OpenIndex, side: int, bad_pictures: BadPictures = "refuse") -> None:
        note = index.note
        self.index, self.side = index, side
        self.fingerprint = hash_fields(["index", side, note.table_sha256, note.captions])
        self.warnings = index_warnings(index)
        self.replaced, self.replaced_names = 0, list[str]()
        self._drawn = 0
        self._choice = index.captions
        self._replaces = bad_pictures == "replace"
        small = len(index) <= MAX_CACHE_BYTES // (3 * side * side)
        self._kept = KeptPictures(side, len(index) if small else 0)
        self._listed: list[str] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def captions(self) -> list[str]:
        """All captions of all samples, or of MAX_LISTED of more samples, evenly spread."""
        if self._listed is None:
            chosen = evenly_spread(len(self), MAX_LISTED)
            self._listed = [caption for index in chosen for caption in self._captions(index)]
        return list(self._listed)

    def item(self, index: int) -> Item:
        """The picture at `index`. Raises BadPictureError, or DataError for a shard that changed."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}.")
        return self._item(index, 0.0)

    def _item(self, index: int, uniform: float) -> Item:
        """uniform: a number in [0, 1) that chooses among several captions."""
        row, shard = self.index.row(index), self.index.shard_of(index)
        with self._opened(shard) as file:
            image, scale = self._kept.picture(index, lambda _: self._picture(file, row))
            there = [count > 0 for _, count in row.captions]
            return Item(image, self._text(file, row, self._choice.drawn(there, uniform)), scale)

    def drawn(self, index: int, random: np.random.Generator) -> Item:
        """The picture at `index`, or what takes its place."""
        self._drawn += 1
        uniform = float(random.random()) if len(self._choice.fields) > 1 else 0.0
        try:
            return self._item(index, uniform)
        except BadPictureError as error:
            if not self._replaces:
                raise
            return self._other(index, uniform, random, error)

    def replacements(self) -> list[str]:
        """A sentence on the pictures that were replaced, if there were any."""
        if not self.replaced:
            return []
        names = ", ".join(self.replaced_names)
        return [
            f"pictures: {self.replaced} of {self._drawn} drawn were bad and replaced ({names})."
        ]

    def _other(
        self, index: int, uniform: float, random: np.random.Generator, error: BadPictureError
    ) -> Item:
        """A picture of the same shard, which the process reads anyway."""
        self.replaced += 1
        name = str(error).partition(": ")[0]
        if len(self.replaced_names) < NAMED and name not in self.replaced_names:
            self.replaced_names.append(name)
        if self.replaced > ALLOWED + MAX_REPLACED * self._drawn:
            raise BadPictureError(
                name,
                f"{error.reason}; {self.replaced} of {self._drawn} pictures drawn so far are bad",
                f"expected at most {MAX_REPLACED:.1%}, so repair the shards and index them anew",
            ) from None
        starts, shard = self.index.starts, self.index.shard_of(index)
        for _ in range(TRIES):
            try:
                return self._item(int(random.integers(starts[shard], starts[shard + 1])), uniform)
            except BadPictureError:
                continue
        raise error

    def _picture(self, file: ShardFile, row: Row) -> tuple[Pixels, float]:
        data = _bytes(file, row.picture, row.picture_bytes)
        try:
            picture = read_square(InMemory(file.name, data), self.side)
        except BadPictureError as error:
            name = f"{file.name} {member_name_at(file, row.picture)}"
            raise BadPictureError(
                shown(name), error.reason, "repair the shard, or take --bad-pictures replace"
            ) from None
        return picture, float(min(row.width, row.height))

    def _captions(self, index: int) -> list[str]:
        row = self.index.row(index)
        there = [number for number, (_, count) in enumerate(row.captions) if count]
        with self._opened(self.index.shard_of(index)) as file:
            return [self._text(file, row, number) for number in there]

    def _text(self, file: ShardFile, row: Row, number: int) -> str:
        place, count = row.captions[number]
        try:
            return self._choice.fields[number].caption(_bytes(file, place, count))
        except UnusableCaptionError as reason:
            raise _changed(file.name, f"has {reason} at byte {place}") from None

    def _opened(self, shard: int) -> ShardFile:
        try:
            file = ShardFile(self.index.shard_path(shard))
        except FileError as error:
            sentence = str(error).removesuffix(".")
            raise DataError(
                f"{sentence}; restore the shard beside its index, or make the index anew."
            ) from None
        expected = self.index.shard_bytes(shard)
        if file.size != expected:
            with file:
                raise _changed(file.name, f"has {file.size} bytes, not {expected}")
        return file


def index_warnings(index: OpenIndex) -> list[str]:
    """Sentences on what an index leaves out."""
    note = index.note
    found = list[str]()
    if note.left_out:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in note.left_out.items())
        found.append(f"samples that are not used: {reasons}.")
    if note.skipped:
        names = ", ".join(map(shown, list(note.skipped)[:NAMED]))
        more = f" and {len(note.skipped) - NAMED} more" if len(note.skipped) > NAMED else ""
        found.append(f"shards that were bad and are left out: {names}{more}.")
    return found


def open_shards(folder: Path, side: int, bad_pictures: BadPictures | None) -> ShardPictures:
    """The pictures of an index. bad_pictures: None is "refuse". Raises DataError."""
    return ShardPictures(OpenIndex(folder), side, bad_pictures or "refuse")


def _bytes(file: ShardFile, place: int, count: int) -> bytes:
    data = file.read(place, count)
    if len(data) < count:
        raise _changed(file.name, f"ends before byte {place + count}")
    return data


def _changed(shard: str, how: str) -> DataError:
    return DataError(
        f"{shown(shard)}: {how}, so it changed since it was indexed; restore it, or make the index "
        "anew."
    )
