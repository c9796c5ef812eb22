"""GroupNorm with four axes, whose sums stay small whatever the size of the image.

At 1024 px a group has two million numbers; a running fp16 sum over them ends in infinity. Here a
mean is a mean of means, each over at most LONGEST numbers. A square of more than 255 is infinite in
fp16 too, so each group is scaled to at most LARGEST before it is squared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONGEST = 64  # numbers averaged at once
LARGEST = 16.0  # of a group's numbers when they are squared: LONGEST squares then add up in fp16
SMALLEST = 1e-3  # of a group's largest number; below it, eps decides


def mean_per_group(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) to (B, groups, 1, 1): mean over the channels of a group and all pixels."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups * height, width)
    while x.shape[2] > 1:
        step = _divisor(x.shape[2])
        x = x.reshape(batch, groups * (x.shape[2] // step), step, width).mean(dim=2, keepdim=True)
        x = x.reshape(batch, groups, -1, width)
    while x.shape[3] > LONGEST:  # (B, groups, 1, W): the last axis stays long until the end
        step = _divisor(x.shape[3])
        x = x.reshape(batch, groups, step, x.shape[3] // step).mean(dim=2, keepdim=True)
    return x.mean(dim=3, keepdim=True)


def _divisor(count: int) -> int:
    """The largest divisor of `count` up to LONGEST; `count` itself if there is no other but 1."""
    found = max(d for d in range(1, min(count, LONGEST) + 1) if count % d == 0)
    return found if found > 1 else count


class GroupNorm(nn.Module):
    """`nn.GroupNorm` of the same weights, optionally with FiLM folded into its affine part."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """x (B, C, H, W); film (B, 2 C, 1, 1): scale less one, then shift -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        centred = x.reshape(batch, self.groups, -1, width) - mean_per_group(x, self.groups)
        scale_down = LARGEST / _largest(centred)  # (B, groups, 1, 1), as is all that follows
        scaled = centred * scale_down
        variance = mean_per_group(
            (scaled * scaled).reshape(batch, channels, height, width), self.groups
        )
        inverse = torch.rsqrt(variance + (self.eps**0.5 * scale_down).square())
        gain = self.weight.reshape(1, self.groups, -1, 1) * inverse
        gain = gain.reshape(batch, channels, 1, 1)
        bias = self.bias.reshape(1, channels, 1, 1)
        if film is not None:
            scale, shift = film.chunk(2, dim=1)
            gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
        return scaled.reshape(batch, channels, height, width) * gain + bias


def _largest(x: Tensor) -> Tensor:
    """(B, groups, N, W) to (B, groups, 1, 1): the largest magnitude, and never zero."""
    highest, lowest = x.amax((2, 3), keepdim=True), x.amin((2, 3), keepdim=True)
    # a clamp would become one with an infinite upper bound
    return torch.maximum(highest, -lowest) + SMALLEST


def standardised(x: Tensor) -> Tensor:
    """x (B, 3, H, W) over its own standard deviation, as `normalize_input` asks for."""
    count = x.shape[1] * x.shape[2] * x.shape[3]
    centred = x - mean_per_group(x, 1)
    variance = mean_per_group(centred * centred, 1) * (count / (count - 1))
    return x * torch.rsqrt(variance)
