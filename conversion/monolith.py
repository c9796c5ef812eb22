"""The layout of one denoiser package: every level of the nest in a single call per step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conversion.conditioning import (
    cross_attention_counts,
    cross_attention_names,
    key_shapes,
    takes_attention_mask,
)
from conversion.errors import ConversionError
from conversion.parts import (
    ATTENTION_MASK,
    Compute,
    Part,
    image_name,
    mask_shape,
    prediction_name,
    temb_name,
)
from conversion.rewrite import for_neural_engine
from conversion.source import ModelSource
from mdm_apple.loss import limit_output
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.unet import BlockKeysValues, UNet


def denoiser_part(source: ModelSource, compute: Compute) -> Part:
    """All levels as one part. Raises ConversionError for video models."""
    config = source.config
    if any(level.temporal for level in config.model.levels):
        raise ConversionError("model: video models cannot be converted; convert an image model.")
    inputs = {image_name(side): torch.zeros(1, 3, side, side) for side in config.sides}
    inputs |= {temb_name(side): torch.zeros(1, config.model.time_dim) for side in config.sides}
    masked = takes_attention_mask(source)
    length = config.text.max_tokens if config.text else 0
    if masked:
        inputs[ATTENTION_MASK] = torch.zeros(mask_shape(length, compute))
    shapes = [
        shape
        for level in range(len(config.sides))
        for pair in key_shapes(source, level, compute)
        for shape in pair
    ]
    for name, shape in zip(cross_attention_names(source), shapes, strict=True):
        inputs[name] = torch.zeros(shape)
    outputs = tuple(prediction_name(side) for side in config.sides)
    net = for_neural_engine(source.net) if compute == "ane" else source.net
    module = DenoiserNetwork(source, net, masked)
    return Part("denoiser", "step", module, inputs, outputs, None, compute)


class DenoiserNetwork(nn.Module):
    """`UNet.denoise` for one picture, with finished embeddings and flat tensor arguments."""

    def __init__(self, source: ModelSource, net: UNet, masked: bool) -> None:
        super().__init__()
        self.net, self.masked = net, masked
        self.diffusion, self.levels = source.config.diffusion, len(source.config.sides)
        with_text = source.config.model.text_width is not None
        self.counts = cross_attention_counts(net) if with_text else None

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
