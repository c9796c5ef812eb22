"""Many pictures decoded once, a few at a time, each in a thread of its own.

Input: which ones, and how one is decoded. Output: what came of each, in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mdm_apple.data.dataset import BadPictureError, Dataset

AHEAD = 256  # pictures that are asked for at once

T = TypeVar("T")


def decode_all(
    indices: Sequence[int], decode: Callable[[int], T]
) -> Iterator[tuple[int, T | BadPictureError]]:
    """Decode each picture; a bad one gives its refusal. As many threads as processors, up to 8."""

    def one(index: int) -> T | BadPictureError:
        try:
            return decode(index)
        except BadPictureError as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode")
    try:
        for start in range(0, len(indices), AHEAD):
            some = indices[start : start + AHEAD]
            yield from zip(some, pool.map(one, some), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for those that are being decoded alone


def bad_pictures(
    dataset: Dataset, indices: Sequence[int], done: Callable[[], object]
) -> dict[int, BadPictureError]:
    """The pictures that cannot be read, by index. The others are kept as far as there is room.

    done: called after each picture.
    """
    bad: dict[int, BadPictureError] = {}
    for index, found in decode_all(indices, lambda index: dataset.item(index).scale):
        if isinstance(found, BadPictureError):
            bad[index] = found
        done()
    return bad
