"""`diffusion.ops.Ops` on MLX arrays (B, H, W, C)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mdm_apple.mlx.nested_unet import fold, unfold


class MlxOps:
    def clip(self, x: mx.array, low: Any, high: Any) -> mx.array:
        return mx.clip(x, low, high)

    def abs_quantile(self, x: mx.array, q: float) -> mx.array:
        values = mx.sort(mx.abs(x).reshape(len(x), -1).astype(mx.float32), axis=1)
        position = q * (values.shape[1] - 1)
        low = int(position)
        high = min(low + 1, values.shape[1] - 1)
        between = values[:, low] + (position - low) * (values[:, high] - values[:, low])
        return between[:, None, None, None]

    def tanh(self, x: mx.array) -> mx.array:
        return mx.tanh(x)

    def avg_pool(self, x: mx.array, factor: int) -> mx.array:
        b, h, w, c = x.shape
        return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))

    def repeat(self, x: mx.array, factor: int) -> mx.array:
        return mx.repeat(mx.repeat(x, factor, axis=1), factor, axis=2)

    def smooth(self, x: mx.array) -> mx.array:
        x = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        x = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
        return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 16

    def sample_mean(self, x: mx.array) -> mx.array:
        return x.reshape(len(x), -1).mean(axis=1)

    def pad_rows(self, x: mx.array, rows: int) -> mx.array:
        return mx.pad(x, [(0, rows - len(x)), *[(0, 0)] * (x.ndim - 1)])

    def pick_frames(self, x: mx.array, grid: int, every: int) -> mx.array:
        frames = unfold(x, grid)
        frames = frames.reshape(len(x), grid * grid, *frames.shape[1:])[:, ::every]
        return fold(frames.flatten(0, 1), round(frames.shape[1] ** 0.5))
