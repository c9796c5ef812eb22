"""The layout with one denoiser package: all levels of the nest in a single call per step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mdm_apple.config.types import Compute
from mdm_apple.diffusion.prediction import limit_output
from mdm_apple.torch.ops import TorchOps
from mdm_apple.torch.unet import BlockKeysValues, UNet

from ..neural_engine import for_neural_engine
from ..source.model import ModelSource
from .names import ATTENTION_MASK, image_name, prediction_name, temb_name
from .parts import (
    Part,
    cross_attention_counts,
    cross_attention_names,
    key_shapes,
    mask_shape,
    takes_attention_mask,
)


def stop_parts(source: ModelSource, compute: Compute) -> list[Part]:
    """One denoiser per side to stop at, smallest first: functions of one package."""
    parts: list[Part] = []
    for first in reversed(range(len(source.config.sides))):
        side = source.config.sides[first]
        part = denoiser_part(source, compute, first)
        parts.append(replace(part, name=f"stop_{side}", side=side, package="denoiser"))
    return parts


def denoiser_part(source: ModelSource, compute: Compute, first_level: int = 0) -> Part:
    """All levels from `first_level` inwards as one part.

    If it is not the outermost, it gets nothing from above.
    """
    config, sides = source.config, source.config.sides[first_level:]
    inputs = {image_name(side): torch.zeros(1, 3, side, side) for side in sides}
    inputs |= {temb_name(side): torch.zeros(1, config.model.time_dim) for side in sides}
    names = cross_attention_names(source, first_level)
    masked = takes_attention_mask(source, first_level)
    length = config.text.max_tokens if config.text else 0
    if masked:
        inputs[ATTENTION_MASK] = torch.zeros(mask_shape(length, compute))
    shapes = [
        shape
        for level in range(first_level, len(config.sides))
        for pair in key_shapes(source, level, compute)
        for shape in pair
    ]
    for name, shape in zip(names, shapes, strict=True):
        inputs[name] = torch.zeros(shape)
    outputs = tuple(prediction_name(side) for side in sides)
    net = for_neural_engine(source.net) if compute == "ane" else source.net
    module = DenoiserNetwork(source, net, masked, first_level)
    return Part("denoiser", "step", module, inputs, outputs, None, compute)


class DenoiserNetwork(nn.Module):
    """`UNet.denoise` for one picture, with final embeddings and flat tensor arguments."""

    def __init__(self, source: ModelSource, net: UNet, masked: bool, first_level: int = 0) -> None:
        super().__init__()
        self.net, self.masked, self.first = net, masked, first_level
        self.diffusion, self.sides = source.config.diffusion, len(source.config.sides)
        self.levels = self.sides - first_level
        with_text = source.config.model.text_width is not None
        self.counts = cross_attention_counts(net)[first_level:] if with_text else None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """x per level, temb per level, the additive mask if any, then keys and values in turn."""
        flat = iter(tensors)
        x_t = [next(flat) for _ in range(self.levels)]
        tembs = [next(flat) for _ in range(self.levels)]
        mask = next(flat) if self.masked else None
        level = self.net.level_modules()[self.first]  # keeps the weight names of the whole network
        predictions, _ = level.denoise_level(x_t, None, tembs, self._nested(flat), mask)
        limit: Any = TorchOps()
        return tuple(limit_output(p, self.diffusion, self.sides, limit) for p in predictions)

    def _nested(self, flat: Iterator[Tensor]) -> tuple[tuple[BlockKeysValues, ...], ...]:
        if self.counts is None:
            return tuple(() for _ in range(self.levels))
        return tuple(
            tuple(tuple((next(flat), next(flat)) for _ in range(n)) for n in blocks)
            for blocks in self.counts
        )
