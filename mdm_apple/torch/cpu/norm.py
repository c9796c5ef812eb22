"""Group norm, with SiLU, modulation by time (FiLM) and gradients that are fast on a CPU.

With channels last, PyTorch's group norm gradient for a large image works on a few channels at a
time and takes as long as a convolution's. Here it consists of passes over whole pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mdm_apple.torch.cpu import strips
from mdm_apple.torch.cpu.conv import eager_fp32_on_cpu

WORTHWHILE_PIXELS = 1024  # numbers in an image; below this, PyTorch's own gradient is as fast


def normalize(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Apply `norm` to x (B, C, H, W)."""
    if _gains(norm, x):
        return _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # type: ignore[no-any-return]
    return norm(x)


def normalize_silu(norm: nn.GroupNorm, x: Tensor, film: Tensor | None = None) -> Tensor:
    """SiLU of the normalised x (B, C, H, W).

    film: (B, 2 C): before SiLU, channels are scaled by 1 + its first half, shifted by its second.
    """
    if film is None and strips.worthwhile(x):
        return strips.normalized_silu(norm, x)
    h = normalize(norm, x)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)
    return F.silu(h, inplace=not torch.is_grad_enabled())


def _gains(norm: nn.GroupNorm, x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and x.shape[2] * x.shape[3] >= WORTHWHILE_PIXELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and eager_fp32_on_cpu(x, norm.weight)
    )


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        batch, channels, height, width = x.shape
        out, mean, rstd = torch.native_group_norm(
            x, weight, bias, batch, channels, height * width, groups, eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, rstd = ctx.saved_tensors
        channels, groups = x.shape[1], mean.shape[1]
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        grad = grad_outputs[0].permute(0, 2, 3, 1).flatten(1, 2)
        mean, rstd = (v.repeat_interleave(channels // groups, dim=1) for v in (mean, rstd))
        ones = rows.new_ones(1, 1, rows.shape[1]).expand(len(rows), -1, -1)
        grad_bias = torch.bmm(ones, grad)[:, 0]  # (B, C), per sample
        grad_weight = rstd * (torch.bmm(ones, grad * rows)[:, 0] - mean * grad_bias)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # rstd (weight grad - mean of it - normalised x times the mean of their product)
            both = torch.stack([grad_bias, grad_weight]) * weight
            both = both.unflatten(2, (groups, -1)).mean(dim=3) / rows.shape[1]
            drift, pull = both.repeat_interleave(channels // groups, dim=2)
            pull = pull * rstd
            level, slope = rstd * (mean * pull - drift), rstd * pull
            out = torch.addcmul(level[:, None], rows, slope[:, None], value=-1)
            out.addcmul_(grad, (rstd * weight)[:, None])
            grad_x = out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return grad_x, grad_weight.sum(dim=0), grad_bias.sum(dim=0), None, None
