"""Retrieval: is a generated picture nearer to the picture of its caption than to all others?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Images
from mdm_apple.data.dataset import Dataset
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.distances import (
    squared_distances,
)

RETRIEVAL_SIDE = 32
MAX_GALLERY_BYTES = 4 << 30


def drawn_captions(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """The pictures of the data that a seed draws, in order."""
    return np.random.RandomState(seed).permutation(total)[:count].astype(np.int64)


def retrieval_side(side: int) -> int:
    """Side at which pictures are compared: 32, or their own side if 32 does not divide it."""
    return side if side % RETRIEVAL_SIDE else RETRIEVAL_SIDE


def retrieval_ranks(
    made: Images, gallery: Images, asked: Sequence[str], captions: Sequence[str]
) -> NDArray[np.int64]:
    """Number of pictures of other captions nearer than the nearest of the requested one: (N,).

    Args:
        made: (N, 3, S, S), for the captions `asked`. gallery: (G, 3, S, S), called `captions`.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(captions))}
    owner = np.array([names[caption] for caption in captions])
    wanted = np.array([names[caption] for caption in asked])
    return ranks_among(made, gallery, list(owner[None, :] == wanted[:, None]))


def ranks_among(
    made: Images, gallery: Images, right_ones: Sequence[NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """Number of wrong pictures that are nearer than the nearest right one: (N,).

    Args:
        made: (N, 3, S, S). gallery: (G, 3, S, S). right_ones: N masks (G,), none of them empty.
    """
    right = np.stack(right_ones)
    rows = gallery.reshape(len(gallery), -1).astype(np.float64)
    between = squared_distances(made.reshape(len(made), -1).astype(np.float64), rows)
    own = np.where(right, between, np.inf).min(axis=1)
    # the same drawing under another name must not count as nearer: leave room for rounding
    nearer = between < own[:, None] - 1e-9 * rows.shape[1]
    return (nearer & ~right).sum(axis=1)


def pool(images: Images, side: int) -> Images:
    """Average-pool pictures to `side`, a divisor of theirs."""
    factor = images.shape[-1] // side
    return images if factor == 1 else NumpyOps().avg_pool(images, factor)


def open_gallery(dataset: Dataset, side: int) -> Images:
    size = len(dataset) * 3 * side**2 * 8
    if size > MAX_GALLERY_BYTES:
        raise MdmError(
            f"data: {len(dataset)} pictures are too many to compare with; choose fewer with "
            "--captions."
        )
    out = np.empty((len(dataset), 3, side, side), np.float32)
    for i in range(len(dataset)):
        out[i] = pool(as_images(dataset.item(i).image[None]), side)[0]
    return out


def as_images(pixels: NDArray[np.uint8]) -> Images:
    """Convert bytes (N, H, W, 3) to (N, 3, H, W) in [-1, 1], as in training."""
    return pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1)
