"""Chooses the parts a model is converted into: the layouts of a bundle."""

from __future__ import annotations

import math

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.types import Compute, Layout

from ..source.model import ModelSource
from .conditioning import conditioning_part
from .nested import nested_parts, skip_shapes
from .parts import Part
from .text_encoder import text_encoder_part
from .whole import denoiser_part, stop_parts

ENGINE_BYTES = 64_000_000  # of activations; a package with more is better off on the GPU


def fitting_compute(config: ModelConfig, layout: Layout) -> Compute:
    """Neural Engine layers if each level has its own packages, else those for the GPU.

    In a single package the largest level decides, and its activations are too large for the engine.
    So may be those of all frames of a clip.
    """
    levels = zip(config.model.levels, config.sides, strict=True)
    if config.frames > 1 and max(_activations(*level) for level in levels) > ENGINE_BYTES:
        return "gpu"
    return "ane" if layout == "nested" else "gpu"


def _activations(config: UNetConfig, side: int) -> int:
    """About how many bytes of fp16 a level holds at once on its way up.

    They are all skips, and two and a half times the input of its last resnet; so it is in captured
    graphs.
    """
    shapes = skip_shapes(config, side)
    pixels = math.prod(shapes[0]) // config.channels[0]
    joined = config.channels[min(1, len(config.channels) - 1)] + config.channels[0]
    return 2 * sum(map(math.prod, shapes)) + 5 * pixels * joined


def parts_of(source: ModelSource, layout: Layout, compute: Compute) -> list[Part]:
    """Parts in the order in which they run.

    Text encoder and conditioning run once per prompt and keep the training layers; the conditioning
    gives keys and values in the form that later packages take.
    """
    if layout == "nested":
        steps = nested_parts(source, compute)
    elif layout == "multifunction":
        steps = stop_parts(source, compute)
    else:
        steps = [denoiser_part(source, compute)]
    parts: list[Part] = []
    if source.encoder is not None:
        parts.append(text_encoder_part(source.encoder, source))
    if source.config.model.text_width is not None:
        parts.append(conditioning_part(source, compute))
    return [*parts, *steps]
