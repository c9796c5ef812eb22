"""Captioned pictures: `Item`, `Dataset`, and the refusals `DataError` and `BadPictureError`.

Input: captions and a function that reads one picture. Output: square RGB pictures, kept in memory.
"""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError

MAX_CAPTION_BYTES = 64 * 1024
MAX_CACHE_BYTES = 1 << 30


class DataError(MdmError):
    """Pictures or captions that cannot be used; the message names the file and the way out."""


class BadPictureError(DataError):
    """A picture that cannot be decoded. reason: why, without the name of the file."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"{name}: {reason}; {remedy}.")
        self.reason = reason


@dataclass(frozen=True)
class File:
    """The file of a picture: its path below the folder, its size, and when it was last written."""

    name: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Item:
    """One captioned picture.

    image: uint8 (side, side, 3), RGB in sRGB, read-only. caption: may be empty.
    scale: original pixels of the picture's shorter side, for the micro-condition of that name.
    """

    image: Pixels
    caption: str
    scale: float


class Pictures(Protocol):
    """What a training step asks of captioned pictures, however many there are.

    side: pixels of the square pictures. fingerprint: hex SHA-256, to compare on resume. warnings:
    sentences for the user.
    """

    @property
    def side(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def captions(self) -> list[str]:
        """All captions in order, or of very many pictures some, evenly spread."""
        ...

    def item(self, index: int) -> Item:
        """The picture at `index` (0 to len - 1); raises DataError if it cannot be read."""
        ...

    def drawn(self, index: int, random: np.random.Generator) -> Item:
        """The picture at `index` as one row of one step sees it. random: the row's own stream."""
        ...


class Dataset:
    """Captioned pictures in a fixed order, each read once and kept (the first 1 GiB of them).

    Args:
        side: pixels of the square pictures.
        captions: one per picture; the order is the order of the data set.
        read: maps an index to a picture (uint8 (side, side, 3)) and its `scale`; may run in several
            threads.
        fingerprint: hex SHA-256 over content and order, to compare on resume.
        warnings: sentences for the user about skipped or poor pictures.
        files: one per picture; none for pictures that do not come from a folder.
        left_out: pictures of the folder that cannot be used, by name, each with a sentence.
        draw: maps an index and a row's own random numbers to what that row sees, where it differs
            from row to row; may run in several threads.
    """

    def __init__(
        self,
        side: int,
        captions: Sequence[str],
        read: Callable[[int], tuple[Pixels, float]],
        fingerprint: str,
        warnings: Sequence[str] = (),
        files: Sequence[File] = (),
        left_out: Mapping[str, str] | None = None,
        draw: Callable[[int, np.random.Generator], Item] | None = None,
    ) -> None:
        self.side = side
        self.fingerprint = fingerprint
        self.warnings = list(warnings)
        self.files = tuple(files)
        self.left_out = dict(left_out or {})
        self._captions = list(captions)
        kept = KeptPictures(side, len(captions))
        self._picture = lambda index: kept.picture(index, read)
        self._draw = draw

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self) -> list[str]:
        """All captions in order; no picture is read."""
        return list(self._captions)

    def item(self, index: int) -> Item:
        """The picture at `index` (0 to len - 1); raises DataError if its file cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}.")
        image, scale = self._picture(index)
        return Item(image, self._captions[index], scale)

    @property
    def varies(self) -> bool:
        """Whether the rows of steps see different pictures at the same index."""
        return self._draw is not None

    def drawn(self, index: int, random: np.random.Generator) -> Item:
        """The picture at `index` as one row of one step sees it.

        random: the row's own stream. A data set of fixed pictures takes nothing from it.
        """
        return self.item(index) if self._draw is None else self._draw(index, random)

    def chosen(
        self,
        order: Sequence[int],
        fingerprint: str,
        left_out: Mapping[str, str] | None = None,
    ) -> Dataset:
        """The pictures at these indices, in this order; one may come twice. None is kept twice.

        left_out: None for the same as here.
        """
        found = copy.copy(self)
        picture, draw = self._picture, self._draw
        found.fingerprint = fingerprint
        found.left_out = self.left_out if left_out is None else dict(left_out)
        found.files = tuple(self.files[index] for index in order) if self.files else ()
        found._captions = [self._captions[index] for index in order]
        found._picture = lambda index: picture(order[index])
        if draw is not None:
            found._draw = lambda index, random: draw(order[index], random)
        return found


class KeptPictures:
    """The first 1 GiB of pictures, once they were read."""

    def __init__(self, side: int, count: int) -> None:
        kept = min(count, MAX_CACHE_BYTES // (3 * side * side))
        # memory pages are taken only as they fill
        self._images = np.empty((kept, side, side, 3), np.uint8)
        self._scales = np.zeros(kept)
        self._ready = np.zeros(kept, bool)

    def picture(
        self, index: int, read: Callable[[int], tuple[Pixels, float]]
    ) -> tuple[Pixels, float]:
        """A read-only picture and its scale."""
        if index >= len(self._images):
            image, scale = read(index)
        else:
            # Two threads may read one picture: both write the same bytes, and `ready` comes last.
            if not self._ready[index]:
                self._images[index], self._scales[index] = read(index)
                self._ready[index] = True
            image, scale = self._images[index], float(self._scales[index])
        image.flags.writeable = False
        return image, scale


def with_captions(
    dataset: Dataset, captions: Sequence[str], left_out: Collection[str] = ()
) -> Dataset:
    """All pictures with these captions, in that order; ways to write an accent count as equal.

    Args:
        left_out: captions that pictures have which are left out; they are no mistake.

    Raises DataError for an unknown one, if no picture is left, and if the rows of steps see
    different pictures.
    """
    if dataset.varies:
        raise DataError("captions: scenes are drawn anew for each row; leave out --captions.")
    excused = {_composed(caption) for caption in left_out}
    places: dict[str, list[int]] = {}
    every = dataset.captions()
    for index, caption in enumerate(every):
        places.setdefault(_composed(caption), []).append(index)
    order: list[int] = []
    for caption in captions:
        key = _composed(caption)
        if key not in places and key not in excused:
            raise DataError(f"captions: no picture has the caption {caption!r}.")
        order.extend(places.get(key, ()))
    if not order and captions:
        raise DataError("captions: every picture with these captions is left out; repair one.")
    kept = [every[index] for index in order]
    return dataset.chosen(order, hash_fields([dataset.fingerprint, *kept]))


def _composed(caption: str) -> str:
    """Macs may write accents as letters of their own."""
    return unicodedata.normalize("NFC", caption)


def evenly_spread(count: int, most: int) -> list[int]:
    """Up to `most` different indices below `count`, the first and the last among them."""
    taken = min(most, count)
    return [k * (count - 1) // max(1, taken - 1) for k in range(taken)]


def hash_fields(fields: Iterable[object]) -> str:
    """Hex SHA-256 of the fields in order; lengths are hashed too, so boundaries cannot shift."""
    digest = hashlib.sha256()
    for field in fields:
        data = str(field).encode("utf-8", "surrogateescape")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()
