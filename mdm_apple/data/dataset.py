"""Captioned pictures: `Item`, `Dataset`, and the refusal `DataError`.

Input: captions and a function that reads one picture. Output: square RGB pictures, kept in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError

MAX_CAPTION_BYTES = 64 * 1024
MAX_CACHE_BYTES = 1 << 30


class DataError(MdmError):
    """Pictures or captions that cannot be used; the message names the file and the way out."""


@dataclass(frozen=True)
class Item:
    """One captioned picture.

    image: uint8 (side, side, 3), RGB in sRGB, read-only. caption: may be empty.
    scale: original pixels of the picture's shorter side, for the micro-condition of that name.
    """

    image: Pixels
    caption: str
    scale: float


class Dataset:
    """Captioned pictures in a fixed order, each read once and kept (the first 1 GiB of them).

    Args:
        side: pixels of the square pictures.
        captions: one per picture; the order is the order of the data set.
        read: maps an index to a picture (uint8 (side, side, 3)) and its `scale`; may run in several
            threads.
        fingerprint: hex SHA-256 over content and order, to compare on resume.
        warnings: sentences for the user about skipped or poor pictures.
    """

    def __init__(
        self,
        side: int,
        captions: Sequence[str],
        read: Callable[[int], tuple[Pixels, float]],
        fingerprint: str,
        warnings: Sequence[str] = (),
    ) -> None:
        self.side = side
        self.fingerprint = fingerprint
        self.warnings = list(warnings)
        self._captions = list(captions)
        self._read = read
        kept = min(len(captions), MAX_CACHE_BYTES // (3 * side * side))
        # memory pages are taken only as they fill
        self._images = np.empty((kept, side, side, 3), np.uint8)
        self._scales = np.zeros(kept)
        self._ready = np.zeros(kept, bool)

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self) -> list[str]:
        """All captions in order; no picture is read."""
        return list(self._captions)

    def item(self, index: int) -> Item:
        """The picture at `index` (0 to len - 1); raises DataError if its file cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}.")
        if index >= len(self._images):
            image, scale = self._read(index)
        else:
            # Two threads may read one picture: both write the same bytes, and `ready` comes last.
            if not self._ready[index]:
                self._images[index], self._scales[index] = self._read(index)
                self._ready[index] = True
            image, scale = self._images[index], float(self._scales[index])
        image.flags.writeable = False
        return Item(image, self._captions[index], scale)


def with_captions(dataset: Dataset, captions: Sequence[str]) -> Dataset:
    """All pictures with these captions, in that order. Raises DataError for an unknown one."""
    places: dict[str, list[int]] = {}
    every = dataset.captions()
    for index, caption in enumerate(every):
        places.setdefault(caption, []).append(index)
    for caption in captions:
        if caption not in places:
            raise DataError(f"captions: no picture has the caption {caption!r}.")
    chosen = [index for caption in captions for index in places[caption]]
    kept = [every[index] for index in chosen]

    def read(index: int) -> tuple[Pixels, float]:
        item = dataset.item(chosen[index])
        return item.image, item.scale

    fingerprint = hash_fields([dataset.fingerprint, *kept])
    return Dataset(dataset.side, kept, read, fingerprint, dataset.warnings)


def hash_fields(fields: Iterable[object]) -> str:
    """Hex SHA-256 of the fields in order; lengths are hashed too, so boundaries cannot shift."""
    digest = hashlib.sha256()
    for field in fields:
        data = str(field).encode("utf-8", "surrogateescape")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()
