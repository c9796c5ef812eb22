"""The layout of one denoiser package: every level of the nest in a single call per step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from conversion.conditioning import (
    conditioning_part,
    cross_attention_counts,
    cross_attention_names,
    takes_attention_mask,
)
from conversion.errors import ConversionError
from conversion.parts import (
    ATTENTION_MASK,
    Part,
    image_name,
    prediction_name,
    temb_name,
)
from conversion.source import ModelSource
from conversion.text_encoder import text_encoder_part
from mdm_apple.config import ATTENTION_HEADS
from mdm_apple.loss import limit_output
from mdm_apple.torch.layers import Attention
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.unet import Block, BlockKeysValues


def monolith(source: ModelSource) -> list[Part]:
    """Parts in the order in which they run. Raises ConversionError for video models."""
    config = source.config
    if any(level.temporal for level in config.model.levels):
        raise ConversionError("model: video models cannot be converted; convert an image model.")
    parts: list[Part] = []
    if source.encoder is not None:
        parts.append(text_encoder_part(source.encoder, source))
    if config.model.text_width is not None:
        parts.append(conditioning_part(source))
    return [*parts, denoiser_part(source)]


def denoiser_part(source: ModelSource) -> Part:
    config = source.config
    inputs = {image_name(side): torch.zeros(1, 3, side, side) for side in config.sides}
    inputs |= {temb_name(side): torch.zeros(1, config.model.time_dim) for side in config.sides}
    masked = takes_attention_mask(source)
    length = config.text.max_tokens if config.text else 0
    if masked:
        inputs[ATTENTION_MASK] = torch.zeros(1, 1, 1, length)
    widths = _key_widths(source)
    for name, width in zip(cross_attention_names(source), widths, strict=True):
        inputs[name] = torch.zeros(1, ATTENTION_HEADS, length, width)
    outputs = tuple(prediction_name(side) for side in config.sides)
    return Part("denoiser", "step", DenoiserNetwork(source, masked), inputs, outputs)


class DenoiserNetwork(nn.Module):
    """`UNet.denoise` for one picture, with finished embeddings and flat tensor arguments."""

    def __init__(self, source: ModelSource, masked: bool) -> None:
        super().__init__()
        self.net, self.masked = source.net, masked
        self.diffusion, self.levels = source.config.diffusion, len(source.config.sides)
        with_text = source.config.model.text_width is not None
        self.counts = cross_attention_counts(source.net) if with_text else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """x per level, temb per level, the additive mask if any, then keys and values in turn."""
        flat = iter(tensors)
        x_t = [next(flat) for _ in range(self.levels)]
        tembs = [next(flat) for _ in range(self.levels)]
        mask = next(flat) if self.masked else None
        predictions, _ = self.net.denoise_level(x_t, None, tembs, self._nested(flat), mask)
        limit: Any = TorchOps()
        return tuple(limit_output(p, self.diffusion, self.levels, limit) for p in predictions)

    def _nested(self, flat: Iterator[Tensor]) -> tuple[tuple[BlockKeysValues, ...], ...]:
        if self.counts is None:
            return tuple(() for _ in range(self.levels))
        return tuple(
            tuple(tuple((next(flat), next(flat)) for _ in range(n)) for n in blocks)
            for blocks in self.counts
        )


def _key_widths(source: ModelSource) -> list[int]:
    """Head width of each key and value tensor."""
    if source.config.model.text_width is None:
        return []
    blocks: list[Block] = [b for m in source.net.level_modules() for b in m.run_blocks()]
    layers = [cast(Attention, layer) for b in blocks if b.attention for layer in b.attn]
    return [layer.qkv.in_channels // ATTENTION_HEADS for layer in layers for _ in range(2)]
