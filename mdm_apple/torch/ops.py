"""`diffusion.ops.Ops` on torch tensors (B, C, H, W)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdm_apple.torch.nested_unet import fold, unfold


class TorchOps:
    def clip(self, x: Tensor, low: Any, high: Any) -> Tensor:
        return x.clamp(low, high)

    def abs_quantile(self, x: Tensor, q: float) -> Tensor:
        # sorted, because torch.quantile refuses inputs above 16 M elements
        values = x.abs().flatten(1).float().sort(dim=1).values
        position = q * (values.shape[1] - 1)
        low = int(position)
        high = min(low + 1, values.shape[1] - 1)
        return torch.lerp(values[:, low], values[:, high], position - low)[:, None, None, None]

    def tanh(self, x: Tensor) -> Tensor:
        return x.tanh()

    def avg_pool(self, x: Tensor, factor: int) -> Tensor:
        return F.avg_pool2d(x, factor)

    def repeat(self, x: Tensor, factor: int) -> Tensor:
        return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)

    def smooth(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        x = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
        return (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 16

    def sample_mean(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1)

    def pad_rows(self, x: Tensor, rows: int) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 1) + (0, rows - len(x)))

    def pick_frames(self, x: Tensor, grid: int, every: int) -> Tensor:
        frames = unfold(x, grid).unflatten(0, (len(x), grid * grid))[:, ::every]
        return fold(frames.flatten(0, 1), round(frames.shape[1] ** 0.5))
