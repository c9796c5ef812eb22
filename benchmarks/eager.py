"""A plain eager reference for machines without a checkout of the original.

It uses our parameters in the straightforward way: it materialises attention scores, precomputes
nothing between steps, and stores channels first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.config.network import ATTENTION_HEADS, UNetConfig
from mdm_apple.torch.cpu.conv import Conv3x3, UpsampleConv3x3
from mdm_apple.torch.layers import Attention, KeysValues
from mdm_apple.torch.nested_unet import build_unet


class EagerAttention(Attention):
    """The same layer with explicit score matrices and 1x1 convolutions."""

    def forward(self, x: Tensor, text: KeysValues | None, mask: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, ATTENTION_HEADS, -1, height * width)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1))
        out = attend(q, k, v, None)
        if text is not None:
            out = out + attend(q, *text, mask)
        out = out.transpose(-1, -2).reshape(batch, channels, height, width)
        x = x + self.proj_out(out)
        return x + self.ffn(x) if hasattr(self, "ffn") else x


class EagerUpsample(UpsampleConv3x3):
    """The same layer, without the computation in corners."""

    def forward(self, input: Tensor) -> Tensor:
        return self.plain(input)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention with its (B, heads, L, L) scores in memory."""
    scale = q.shape[-1] ** -0.25
    scores = (q * scale) @ (k * scale).transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.softmax(scores.float(), dim=-1).to(v.dtype) @ v


def build_eager(config: UNetConfig) -> nn.Module:
    """The network of a configuration with plain layers and the same state dict."""
    net = build_unet(config)
    plain: dict[type[nn.Module], type[nn.Module]] = {
        Attention: EagerAttention,
        UpsampleConv3x3: EagerUpsample,
        Conv3x3: nn.Conv2d,
    }
    for module in net.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
    return net


def run_eager(
    net: nn.Module, x_t: list[Tensor], times: Tensor, text: Tensor, mask: Tensor
) -> list[Tensor]:
    """One forward pass, including text path and embeddings."""
    out: list[Tensor] = net(x_t, times, text, mask)
    return out


def randomize_zeros(net: nn.Module, seed: int = 0) -> None:
    """Give zero-initialised layers random weights, so that outputs can differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
