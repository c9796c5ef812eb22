"""Training data from an object: the fingerprint reads few pictures, and sees changes in these."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mdm_apple.data.from_object import SAMPLED, dataset_of

SIDE = 8


class Shades:
    """Grey pictures, each of its own shade; remembers which were read."""

    def __init__(self, count: int, changed: int | None = None) -> None:
        self.count = count
        self.changed = changed
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def caption(self, index: int) -> str:
        return f"shade {index}"

    def picture(self, index: int, side: int) -> NDArray[np.uint8]:
        self.read.append(index)
        return np.full((side, side, 3), 255 if index == self.changed else index, np.uint8)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 32, 100])
def test_the_fingerprint_reads_at_most_sixteen_pictures_evenly_spread(count: int) -> None:
    source = Shades(count)
    dataset_of(source, SIDE)
    assert len(source.read) == len(set(source.read)) == min(SAMPLED, count)
    assert (min(source.read), max(source.read)) == (0, count - 1)
    gaps = np.diff(source.read)
    assert not gaps.size or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("changed", [0, 30])
def test_another_first_or_last_picture_gives_another_fingerprint(changed: int) -> None:
    before = dataset_of(Shades(31), SIDE).fingerprint
    assert dataset_of(Shades(31), SIDE).fingerprint == before
    assert dataset_of(Shades(31, changed), SIDE).fingerprint != before
