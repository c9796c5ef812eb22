"""Replaces the layers of a network in a copy; the network and its weights do not change."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.torch import layers
from mdm_apple.torch.cpu.conv import UpsampleConv3x3, upsample_nearest
from mdm_apple.torch.unet import UNet

from .attention import Attention
from .norms import GroupNorm
from .pointwise import pointwise
from .temporal import FrameConv, TemporalAttention

Network = TypeVar("Network", bound=nn.Module)


class ResNet(nn.Module):
    """`layers.ResNet` with the same weights and FiLM folded into the second norm."""

    def __init__(self, layer: layers.ResNet) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(layer.norm1), layer.conv1
        self.time_layer = pointwise(layer.time_layer)
        self.norm2, self.conv2 = GroupNorm(layer.norm2), layer.conv2
        if hasattr(layer, "conv3"):
            self.conv3 = layer.conv3

    def forward(self, x: Tensor, temb: Tensor, skip: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), temb (B, D) or one row for several frames -> (B, C_out, H, W)."""
        x = x if skip is None else torch.cat([x, skip], dim=1)
        film = self.time_layer(F.silu(temb[:, :, None, None]))
        if 1 < len(film) < len(x):  # video: every frame of a sample shares its row
            film = film.repeat_interleave(len(x) // len(film), dim=0)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h, film)))
        return (self.conv3(x) if hasattr(self, "conv3") else x) + h


class Upsample(nn.Module):
    """`UpsampleConv3x3` with the same weights, as its two separate operations."""

    def __init__(self, conv: UpsampleConv3x3) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(upsample_nearest(x), self.weight, self.bias, padding=1)


def for_neural_engine(net: UNet) -> UNet:
    """A network with the same weights and outputs; `net` is unchanged.

    Its attention takes keys, values and masks in the form of `neural_engine.attention`.
    """
    return _exchanged(net)


def _exchanged(module: Network) -> Network:
    new: nn.Module
    if isinstance(module, layers.ResNet):
        new = ResNet(module)
    elif isinstance(module, layers.Attention):
        new = Attention(module)
    elif isinstance(module, UpsampleConv3x3):
        new = Upsample(module)
    elif isinstance(module, layers.FrameDownsample | layers.FrameUpsample):
        new = FrameConv(module)
    elif isinstance(module, layers.TemporalAttention):
        new = TemporalAttention(module)
    elif isinstance(module, nn.GroupNorm):
        new = GroupNorm(module)
    else:
        new = copy.copy(module)  # shares parameters, but gets its own list of children
        children: dict[str, nn.Module | None] = module.__dict__["_modules"]
        new.__dict__["_modules"] = {
            name: None if child is None else _exchanged(child) for name, child in children.items()
        }
    new.training = module.training
    return new  # type: ignore[return-value]
