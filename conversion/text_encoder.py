"""The T5 encoder as a package: token ids and mask to text features.

Everything is fp16 on the device. The norm here divides by the largest value before squaring,
because squares of values beyond 255 exceed fp16. What remains: the last product of a feed-forward
of the largest encoders exceeds it as well; `verify` reports the largest value of every package.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from conversion.parts import MASKED, TEXT_FEATURES, TEXT_MASK, TOKEN_IDS, Part
from conversion.source import ModelSource
from mdm_apple.text import relative_buckets
from mdm_apple.torch.t5 import AttentionLayer, Block, FeedForwardLayer, RMSNorm, T5Encoder


def text_encoder_part(encoder: T5Encoder, source: ModelSource) -> Part:
    """The part of an encoder whose weights the source holds."""
    assert source.config.text, "only models with text have an encoder"
    length = source.config.text.max_tokens
    inputs = {
        TOKEN_IDS: torch.ones(1, length, dtype=torch.int32),
        TEXT_MASK: torch.ones(1, length),
    }
    return Part(
        "text_encoder", "text", TextEncoderNetwork(encoder, length), inputs, (TEXT_FEATURES,)
    )


class TextEncoderNetwork(nn.Module):
    """`T5Encoder.forward` at a fixed length, with the relative positions as a constant."""

    def __init__(self, encoder: T5Encoder, length: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.position_bias: Tensor
        config = encoder.config
        first = cast(AttentionLayer, cast(Block, encoder.encoder.block[0]).layer[0])
        buckets = relative_buckets(length, config.relative_buckets, config.relative_max_distance)
        with torch.no_grad():
            bias = first.SelfAttention.relative_attention_bias(torch.from_numpy(buckets))
            self.register_buffer("position_bias", bias.permute(2, 0, 1)[None].contiguous())

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (1, L) int32, mask (1, L) -> features (1, L, D), zero where the mask is."""
        bias = self.position_bias + (1 - mask)[:, None, None, :] * MASKED
        x = self.encoder.shared(ids)
        for block in self.encoder.encoder.block:
            attention, feed_forward = cast(Block, block).layer
            x = x + _attention(cast(AttentionLayer, attention), x, bias)
            x = x + _feed_forward(cast(FeedForwardLayer, feed_forward), x)
        return _rms_norm(self.encoder.encoder.final_layer_norm, x) * mask[:, :, None]


def _attention(layer: AttentionLayer, x: Tensor, bias: Tensor) -> Tensor:
    """Written out: Core ML's attention operation always scales its logits, T5 never does."""
    attention, h = layer.SelfAttention, _rms_norm(layer.layer_norm, x)
    q, k, v = (
        project(h).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for project in attention.qkv
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) + bias, dim=-1)
    return attention.o((weights @ v).transpose(1, 2).flatten(2))


def _feed_forward(layer: FeedForwardLayer, x: Tensor) -> Tensor:
    return layer.DenseReluDense(_rms_norm(layer.layer_norm, x))


def _rms_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    # 1e-3 is far below any real row and keeps an all-zero one finite in fp16
    scaled = x / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-3)
    mean_square = scaled.square().mean(dim=-1, keepdim=True)
    return scaled * torch.rsqrt(mean_square + norm.eps) * norm.weight
