"""Norms with four axes, whose sums stay small for images of any size.

At 1024 px a group has two million numbers, and an fp16 sum over them overflows to infinity. Here a
mean is a mean of means, each over at most LONGEST numbers. The square of a number above 255 is also
infinite in fp16, so each group is scaled to at most LARGEST before it is squared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONGEST = 64  # numbers averaged at once
LARGEST = 16.0  # of a group's numbers when squared, so that LONGEST squares add up in fp16
SMALLEST = 1e-3  # of a group's largest number; below it, eps dominates


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
    """The largest divisor of `count` up to LONGEST, or `count` itself if that would be 1."""
    found = max(d for d in range(1, min(count, LONGEST) + 1) if count % d == 0)
    return found if found > 1 else count


class GroupNorm(nn.Module):
    """`nn.GroupNorm` with the same weights, optionally with FiLM folded into its affine part."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """x (B, C, H, W); film (B, 2 C, 1, 1): scale minus one, then shift -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        centred = x.reshape(batch, self.groups, -1, width) - mean_per_group(x, self.groups)
        scale_down = LARGEST / _largest(centred)  # (B, groups, 1, 1), like everything below
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


class LayerNorm(nn.Module):
    """`nn.LayerNorm` over axis 1, with the same weights."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), normalised for each pixel."""
        centred = x - _mean_of_channels(x)
        scale_down = LARGEST / _largest(centred, (1,))
        scaled = centred * scale_down
        variance = _mean_of_channels(scaled * scaled)
        inverse = torch.rsqrt(variance + (self.eps**0.5 * scale_down).square())
        weight, bias = (p.reshape(1, -1, 1, 1) for p in (self.weight, self.bias))
        return scaled * inverse * weight + bias


def _mean_of_channels(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 1, H, W)."""
    batch, channels, height, width = x.shape
    while channels > LONGEST:
        step = _divisor(channels)
        channels //= step
        x = x.reshape(batch * channels, step, height, width).mean(dim=1, keepdim=True)
        x = x.reshape(batch, channels, height, width)
    return x.mean(dim=1, keepdim=True)


def _largest(x: Tensor, axes: tuple[int, ...] = (2, 3)) -> Tensor:
    """The largest magnitude along the axes, which stay with length one; never zero."""
    highest, lowest = x.amax(axes, keepdim=True), x.amin(axes, keepdim=True)
    # `clamp` would be converted with an infinite upper bound
    return torch.maximum(highest, -lowest) + SMALLEST


def standardised(x: Tensor) -> Tensor:
    """x (B, 3, H, W) divided by its own standard deviation, for `normalize_input`."""
    count = x.shape[1] * x.shape[2] * x.shape[3]
    centred = x - mean_per_group(x, 1)
    variance = mean_per_group(centred * centred, 1) * (count / (count - 1))
    return x * torch.rsqrt(variance)
