"""Distances between two sets of pictures, in features that need no download.

Input: pictures (N, 3, S, S) in [-1, 1]. Output: Fréchet and kernel distance, precision and recall.
The features are handcrafted (`layout_features`), so these numbers compare runs of this project with
each other; they are not FID or KID on Inception features and must not be compared with them.
Sources: Heusel et al. 2017 (Fréchet, arXiv:1706.08500), Binkowski et al. 2018 (kernel,
arXiv:1801.01401), Kynkäänniemi et al. 2019 (precision and recall, arXiv:1904.06991).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mdm_apple.errors import MdmError

Features = NDArray[np.float64]  # (N, D)
CELLS = 4  # cells per side of the grid for averaging features
ORIENTATIONS = 4
NEIGHBOURS = 3  # as in the paper, for radii of precision and recall
GRAY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601


def layout_features(images: NDArray[np.float32]) -> Features:
    """112 numbers per picture: the colours and edge directions in each part of it.

    On a grid of 4 x 4 cells: the mean of R, G and B in [-1, 1] (48 numbers), and the mean gradient
    magnitude of the luma, split over 4 orientations of 45 degrees, linearly between the two nearest
    (64 numbers, times 4 to match the size of the colours). Forward differences, zero at the far
    border.
    """
    side = images.shape[-1]
    if side % CELLS or side < 2 * CELLS:
        raise MdmError(f"pictures: expected a side that is a multiple of {CELLS}, got {side}.")
    x = images.astype(np.float64)
    luma = np.tensordot(x, GRAY, axes=([1], [0]))
    dx, dy = _differences(luma)
    magnitude = np.hypot(dx, dy)
    position = np.arctan2(dy, dx) % np.pi / np.pi * ORIENTATIONS  # of an edge, without its sign
    low = np.floor(position)
    share = position - low
    planes = [x[:, c] for c in range(3)]
    for k in range(ORIENTATIONS):
        here = (low % ORIENTATIONS == k) * (1 - share)
        there = ((low + 1) % ORIENTATIONS == k) * share
        planes.append(4 * magnitude * (here + there))
    cells = np.stack(planes, axis=1)
    n, kinds = cells.shape[:2]
    size = side // CELLS
    return cells.reshape(n, kinds, CELLS, size, CELLS, size).mean(axis=(3, 5)).reshape(n, -1)


def frechet_distance(real: Features, made: Features) -> float:
    """|difference of means|^2 + tr(A + B - 2 (A B)^1/2) of the covariances A and B."""
    a, b = _covariance(real), _covariance(made)
    root = _root(a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    gap = real.mean(axis=0) - made.mean(axis=0)
    return max(0.0, float(gap @ gap + np.trace(a) + np.trace(b) - 2 * cross))


def kernel_distance(real: Features, made: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / D + 1)^3; may be below 0."""
    n, m, width = len(real), len(made), real.shape[1]
    within_real = (real @ real.T / width + 1) ** 3
    within_made = (made @ made.T / width + 1) ** 3
    across = (real @ made.T / width + 1) ** 3
    return float(
        (within_real.sum() - np.trace(within_real)) / (n * (n - 1))
        + (within_made.sum() - np.trace(within_made)) / (m * (m - 1))
        - 2 * across.mean()
    )


def precision_recall(real: Features, made: Features) -> tuple[float, float]:
    """Share of generated pictures among the real ones, and of real among the generated.

    A picture counts as among others if it is no further from one of them than that picture's third
    nearest neighbour in its own set.
    """
    between = np.sqrt(squared_distances(made, real))
    precision = (between <= _radii(real)[None, :]).any(axis=1).mean()
    recall = (between <= _radii(made)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def squared_distances(a: Features, b: Features) -> Features:
    """Squared Euclidean distance of every row of a to every row of b: (len(a), len(b))."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :]
    return np.clip(squares - 2 * a @ b.T, 0, None)


def _radii(features: Features) -> NDArray[np.float64]:
    """Distance of each row to its third nearest other row."""
    nearest = min(NEIGHBOURS, len(features) - 1)
    return np.sqrt(np.partition(squared_distances(features, features), nearest)[:, nearest])


def _differences(plane: Features) -> tuple[Features, Features]:
    """Forward differences along x and y, zero at the far border."""
    dx = np.diff(plane, axis=-1, append=plane[..., :, -1:])
    dy = np.diff(plane, axis=-2, append=plane[..., -1:, :])
    return dx, dy


def gradient_magnitude(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean over pixels of (sum over R, G, B of dx^2 + dy^2)^1/2, forward differences: (N,)."""
    dx, dy = _differences(images.astype(np.float64))
    return np.sqrt((dx**2 + dy**2).sum(axis=1)).mean(axis=(1, 2))


def _covariance(features: Features) -> Features:
    centred = features - features.mean(axis=0)
    return centred.T @ centred / (len(features) - 1)


def _root(matrix: Features) -> Features:
    """Square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
