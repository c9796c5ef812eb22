"""Relative positions of T5: the bucket of the learned table for each pair of tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def relative_buckets(length: int, buckets: int, max_distance: int) -> NDArray[np.int64]:
    """Bucket of every key position as seen from every query position: (length, length).

    Half of the buckets are for keys behind, half for keys ahead. In each half, near distances have
    one bucket each, and the rest grow logarithmically up to max_distance. For a key at distance d,
    log(d / near) / log(max_distance / near) is computed in float32, which decides the boundaries.
    """
    positions = np.arange(length)
    offset = positions[None, :] - positions[:, None]  # key minus query
    distance = np.abs(offset)
    half = buckets // 2
    near = half // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(near))
    steps = ratio / np.float32(np.log(max_distance / near)) * np.float32(half - near)
    far = np.minimum(near + steps.astype(np.int64), half - 1)
    return np.where(distance < near, distance, far) + np.where(offset > 0, half, 0)
