"""Layers over frames with at most four axes.

Frames lie in the batch axis of every 2-D layer: (B T, C, H, W). What mixes frames works on planes
of frames and pixels instead, (B, C, T, HW), where a convolution over frames is a 2-D convolution
with a kernel of 3 x 1 and a linear layer one of 1 x 1.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mdm_apple.config.network import TEMPORAL_HEAD_WIDTH
from mdm_apple.torch import layers
from mdm_apple.torch.cpu.conv import upsample_nearest

from ..limits import MOST_FRAMES
from .norms import LayerNorm
from .pointwise import pointwise


def planes(h: Tensor, samples: int) -> Tensor:
    """(B T, C, H, W), with the T frames of each of the `samples` = B in sequence, to planes."""
    rows, channels, height, width = h.shape
    return h.reshape(samples, rows // samples, channels, height * width).transpose(1, 2)


def frames(h: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `planes`."""
    return h.transpose(1, 2).reshape(-1, h.shape[1], height, width)


class FrameConv(nn.Module):
    """`layers.FrameDownsample` or `layers.FrameUpsample` with the same weights."""

    def __init__(self, conv: layers.FrameDownsample | layers.FrameUpsample) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight[:, :, :, None], requires_grad=False)
        self.bias, self.stride = conv.bias, conv.stride[0]
        self.repeats = isinstance(conv, layers.FrameUpsample)

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """(B T, C, H, W) to half or twice the frames."""
        h = planes(x, samples)
        if self.repeats:
            h = repeated(h)
        h = nn.functional.conv2d(h, self.weight, self.bias, (self.stride, 1), (1, 0))
        return frames(h, *x.shape[2:])


def repeated(h: Tensor) -> Tensor:
    """Planes with each frame twice, one after the other: (B, C, T, HW) to (B, C, 2 T, HW)."""
    batch, channels, count, pixels = h.shape
    once = h.reshape(batch, channels * count, 1, pixels)
    return torch.cat([once, once], dim=2).reshape(batch, channels, 2 * count, pixels)


class TemporalAttention(nn.Module):
    """`layers.TemporalAttention` with the same weights."""

    def __init__(self, layer: layers.TemporalAttention) -> None:
        super().__init__()
        self.down_conv, self.up_conv = layer.down_conv, layer.up_conv
        self.attn, self.mlp = FrameAttention(layer.attn), FeedForward(layer.mlp)

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """(B T, C, H, W), with the T frames of each of the `samples` = B in sequence."""
        h = self.down_conv(x)
        height, width = h.shape[2:]
        h = self.mlp(self.attn(planes(h, samples)))
        return x + self.up_conv(upsample_nearest(frames(h, height, width)))


class FrameAttention(nn.Module):
    """`layers.SelfAttention1D` over the frames of each pixel, one head at a time."""

    def __init__(self, layer: layers.SelfAttention1D) -> None:
        super().__init__()
        self.norm = LayerNorm(layer.norm)
        self.qkv, self.proj_out = pointwise(layer.qkv), pointwise(layer.proj_out)
        if hasattr(layer, "pos_emb"):
            self.pos_emb = Rotary(layer.pos_emb)

    def forward(self, x: Tensor) -> Tensor:
        """Planes (B, C, T, HW)."""
        heads = [p.split(TEMPORAL_HEAD_WIDTH, dim=1) for p in self.qkv(self.norm(x)).chunk(3, 1)]
        out = torch.cat([self._head(*head) for head in zip(*heads, strict=True)], dim=1)
        return x + self.proj_out(out)

    def _head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, width, T, HW) each."""
        if hasattr(self, "pos_emb"):
            q, k = self.pos_emb(q), self.pos_emb(k)
        q = (q * TEMPORAL_HEAD_WIDTH**-0.5).permute(0, 3, 2, 1)  # (B, HW, T, width)
        weights = torch.softmax(torch.matmul(q, k.permute(0, 3, 1, 2)), dim=3)
        return torch.matmul(weights, v.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)


class Rotary(nn.Module):
    """`layers.RotaryEmbedding`, whose result has the first of each pair, then the second.

    The product of queries and keys does not see an order that both have.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, layer: layers.RotaryEmbedding) -> None:
        super().__init__()
        # tables: angles from frequencies in fp16 would be wrong by a hundredth at the last frames
        angles = layer.freqs.detach().float()[:, None] * torch.arange(float(MOST_FRAMES))
        self.register_buffer("cos", angles.cos()[None, :, :, None], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, :, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """One head (B, width, T, HW), rotated by its index along T."""
        cos, sin = self.cos[:, :, : x.shape[2]], self.sin[:, :, : x.shape[2]]
        a, b = x[:, 0::2], x[:, 1::2]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)


class FeedForward(nn.Module):
    """`layers.MLP` on planes."""

    def __init__(self, layer: layers.MLP) -> None:
        super().__init__()
        norm, widen, activation, narrow = layer.main
        self.main = nn.Sequential(
            LayerNorm(cast(nn.LayerNorm, norm)),
            pointwise(cast(nn.Linear, widen)),
            activation,
            pointwise(cast(nn.Linear, narrow)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Planes (B, C, T, HW)."""
        return x + self.main(x)
