"""The T5 encoder as a package: token ids and mask to text features.

The device computes in fp16, which ends at 65504. Large encoders exceed that in the last product of
a feed-forward and in the residual sum. So the sum is stored times SHRINK: the embeddings and
everything added to them are multiplied by that power of two, which rounds nothing, and every norm
cancels it. A norm divides by the largest value before squaring, because squares of values beyond
255 exceed fp16. The weights are unchanged; relative positions are one constant for all blocks.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.text.t5_positions import relative_buckets
from mdm_apple.torch.t5 import AttentionLayer, Block, FeedForwardLayer, RMSNorm, T5Encoder

from ..source.model import ModelSource, encoder_megabytes
from .names import TEXT_FEATURES, TEXT_MASK, TOKEN_IDS
from .parts import MASKED, Part

SHRINK = 2.0**-5  # scales the residual sum, which may reach two million
SMALLEST = 1e-4  # of a row's largest value; far below any real row, and no subnormal fp16 number


def text_encoder_part(encoder: T5Encoder, source: ModelSource) -> Part:
    """The part for an encoder; the source holds its weights."""
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
        x = self.encoder.shared(ids) * SHRINK
        for block in self.encoder.encoder.block:
            attention, feed_forward = cast(Block, block).layer
            x = x + _attention(cast(AttentionLayer, attention), x, bias)
            x = x + _feed_forward(cast(FeedForwardLayer, feed_forward), x)
        return _rms_norm(self.encoder.encoder.final_layer_norm, x) * mask[:, :, None]


def _attention(layer: AttentionLayer, x: Tensor, bias: Tensor) -> Tensor:
    """Written out, because Core ML's attention operation scales its logits and T5 does not."""
    attention, h = layer.SelfAttention, _rms_norm(layer.layer_norm, x)
    q, k, v = (
        project(h).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for project in attention.qkv
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) + bias, dim=-1)
    return attention.o((weights @ v).transpose(1, 2).flatten(2) * SHRINK)


def _feed_forward(layer: FeedForwardLayer, x: Tensor) -> Tensor:
    """SHRINK enters before the product of both halves, where values grow."""
    dense, h = layer.DenseReluDense, _rms_norm(layer.layer_norm, x)
    if dense.gated:
        hidden = F.gelu(dense.wi_0(h), approximate="tanh") * (dense.wi_1(h) * SHRINK)
    else:
        hidden = F.relu(dense.wi(h)) * SHRINK
    return dense.wo(hidden)


def _rms_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    scaled = x / x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)
    mean_square = scaled.square().mean(dim=-1, keepdim=True)
    return scaled * torch.rsqrt(mean_square + norm.eps) * norm.weight


def missing_text(source: ModelSource) -> str | None:
    """A message about what a bundle lacks to take prompts: its size, and the two remedies.

    None if nothing is missing.
    """
    text = source.config.text
    if text is None or (source.encoder is not None and source.tokenizer is not None):
        return None
    features = "give the app features of its prompts, made by `mdm embed`"
    if source.encoder is not None:
        return (
            "The bundle has a text encoder but no tokenizer, because its model has none: convert a "
            f"model folder, or {features}."
        )
    size = ""
    if text.encoder is not None:
        full = encoder_megabytes(text.encoder)
        size = f", {full:.0f} MB in fp16 and {full / 4:.0f} MB at 4 bits"
    name = text.source or "the one it was trained with"
    return (
        f"The bundle has no text encoder ({name}{size}): convert again with --text-encoder yes, "
        f"or {features}."
    )
