"""The few operations beyond arithmetic operators, as a protocol and in NumPy.

Images are (B, C, H, W) here and in torch, (B, H, W, C) in MLX; each implementation uses its own.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mdm_apple.config.types import Array
from mdm_apple.diffusion.canvas import unfolded


class Ops(Protocol):
    """The operations that diffusion needs from a framework, beyond arithmetic."""

    def clip(self, x: Array, low: Any, high: Any) -> Array:
        """Elementwise clip; a bound is a number, an array that broadcasts, or None."""
        ...

    def abs_quantile(self, x: Array, q: float) -> Array:
        """Quantile q of |x| per sample, linearly interpolated: (B, 1, 1, 1)."""
        ...

    def tanh(self, x: Array) -> Array: ...

    def avg_pool(self, x: Array, factor: int) -> Array:
        """Average over factor x factor squares of pixels."""
        ...

    def repeat(self, x: Array, factor: int) -> Array:
        """Enlarge by repetition: every pixel becomes a square of factor x factor."""
        ...

    def smooth(self, x: Array) -> Array:
        """Average with the neighbours, weights 1 2 1 both ways; beyond the border are zeros."""
        ...

    def sample_mean(self, x: Array) -> Array:
        """Mean over everything except the batch: (B,)."""
        ...

    def pad_rows(self, x: Array, rows: int) -> Array:
        """x with zero rows appended up to a batch of `rows`."""
        ...

    def pick_frames(self, x: Array, grid: int, every: int) -> Array:
        """From images that tile grid x grid frames, keep every `every`-th frame, tiled again."""
        ...


class NumpyOps:
    """Ops on (B, C, H, W) NumPy arrays."""

    def clip(self, x: Array, low: Any, high: Any) -> Array:
        return np.clip(x, low, high)

    def abs_quantile(self, x: Array, q: float) -> Array:
        return np.quantile(np.abs(x).reshape(len(x), -1), q, axis=1).astype(x.dtype)[
            :, None, None, None
        ]

    def tanh(self, x: Array) -> Array:
        return np.tanh(x)

    def avg_pool(self, x: Array, factor: int) -> Array:
        b, c, h, w = x.shape
        return x.reshape(b, c, h // factor, factor, w // factor, factor).mean(axis=(3, 5))

    def repeat(self, x: Array, factor: int) -> Array:
        return x.repeat(factor, axis=2).repeat(factor, axis=3)

    def smooth(self, x: Array) -> Array:
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        x = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
        return (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 16

    def sample_mean(self, x: Array) -> Array:
        return x.reshape(len(x), -1).mean(axis=1)

    def pad_rows(self, x: Array, rows: int) -> Array:
        return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])

    def pick_frames(self, x: Array, grid: int, every: int) -> Array:
        b, c, h, w = x.shape
        frames = unfolded(x, grid)[:, ::every]
        side = round(frames.shape[1] ** 0.5)
        frames = frames.reshape(b, side, side, c, h // grid, w // grid).transpose(0, 3, 1, 4, 2, 5)
        return frames.reshape(b, c, side * (h // grid), side * (w // grid))
