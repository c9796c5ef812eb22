"""A clip's frames, tiled row by row in one square picture: its canvas.

Networks, samplers, packages and Swift work on canvases; data and files on frames.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Array

Kind = TypeVar("Kind", np.uint8, np.float32)


def tiled(frames: NDArray[Kind]) -> NDArray[Kind]:
    """The canvas (n H, n W, 3) of frames (N, H, W, 3), where N = n n."""
    count, height, width, channels = frames.shape
    grid = math.isqrt(count)
    rows = frames.reshape(grid, grid, height, width, channels).transpose(0, 2, 1, 3, 4)
    return rows.reshape(grid * height, grid * width, channels)


def untiled(canvas: NDArray[Kind], count: int) -> NDArray[Kind]:
    """The frames (count, H, W, 3) of a canvas (n H, n W, 3), where count = n n."""
    frames = unfolded(canvas.transpose(2, 0, 1)[None], math.isqrt(count))[0]
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1))


def frame_side(side: int, frames: int) -> int:
    """Pixels on a side of a frame; side: of the canvas."""
    return side // math.isqrt(frames)


def unfolded(canvases: Array, grid: int) -> Array:
    """The frames (B, grid grid, C, h, w) of NumPy canvases (B, C, grid h, grid w)."""
    count, channels, height, width = canvases.shape
    height, width = height // grid, width // grid
    cells = canvases.reshape(count, channels, grid, height, grid, width)
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, channels, height, width)
