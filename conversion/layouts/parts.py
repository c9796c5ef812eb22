"""The parts of a layout: networks that become packages, and the tensor names that wire them.

A tensor name means the same in every package of a bundle: an output of one package enters every
later package with an input of that name. The host provides the rest (images, time embeddings,
tokens). So a layout is a list of parts, and running a bundle needs no knowledge of its layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from mdm_apple.config.network import ATTENTION_HEADS
from mdm_apple.config.types import Compute
from mdm_apple.torch.layers import Attention
from mdm_apple.torch.unet import UNet

from ..source.model import ModelSource
from .names import keys_values_names

Phase = Literal["text", "prompt", "step"]  # how often a package runs

# Far below every logit and, unlike -inf, safe in fp16 arithmetic.
MASKED = -1e4


@dataclass(frozen=True)
class Part:
    """A network that becomes one package.

    inputs: an example tensor per input name, in the order of the module's arguments; integers are
    int32. outputs: names in the order of the module's results. side: the one level the part belongs
    to, so that sampling that stops below it skips the part; None if it belongs to all. compute: the
    hardware its layers are made for. package: the package it is a function of; None for its own.
    """

    name: str
    phase: Phase
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    side: int | None = None
    compute: Compute = "gpu"
    package: str | None = None

    @property
    def file_stem(self) -> str:
        """Name of the package that holds the part, without a suffix."""
        return self.package or self.name


def mask_shape(length: int, compute: Compute) -> tuple[int, ...]:
    """Shape of the additive attention mask."""
    return (1, length, 1, 1) if compute == "ane" else (1, 1, 1, length)


def cross_attention_counts(net: UNet) -> list[list[int]]:
    """Number of attention layers per level and block, in the order of execution."""
    return [
        [len(b.attn) if b.attention else 0 for b in m.run_blocks()] for m in net.level_modules()
    ]


def cross_attention_names(source: ModelSource, first_level: int = 0) -> list[str]:
    """Names of the keys and values from `first_level` on, in the order of execution."""
    if source.config.model.text_width is None:
        return []
    counts = [sum(blocks) for blocks in cross_attention_counts(source.net)]
    return [
        name
        for side, count in list(zip(source.config.sides, counts, strict=True))[first_level:]
        for index in range(count)
        for name in keys_values_names(side, index)
    ]


def key_shapes(
    source: ModelSource, level: int, compute: Compute
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of keys and values for each cross-attention of a level, in order."""
    text = source.config.text
    if text is None or source.config.model.text_width is None:
        return []
    length, shapes = text.max_tokens, list[tuple[tuple[int, ...], tuple[int, ...]]]()
    for block in source.net.level_modules()[level].run_blocks():
        for layer in cast("list[Attention]", list(block.attn)) if block.attention else []:
            width = layer.qkv.in_channels
            flat = (1, ATTENTION_HEADS, length, width // ATTENTION_HEADS)
            engine = (1, length, 1, width), (1, width, 1, length)
            shapes.append(engine if compute == "ane" else (flat, flat))
    return shapes


def takes_attention_mask(source: ModelSource, first_level: int = 0) -> bool:
    """Whether this model hides some text from its attention; others attend to all padding."""
    return hides_padding(source) and bool(cross_attention_names(source, first_level))


def hides_padding(source: ModelSource) -> bool:
    """Whether padding is hidden: all of it, or that beyond the captions of a picture."""
    return source.config.model.innermost.masked_cross_attention or source.config.shares_padding
