"""Chooses the parts a model is converted into: the layouts of a bundle."""

from __future__ import annotations

from mdm_apple.config.types import Compute, Layout

from ..source.model import ModelSource
from .conditioning import conditioning_part
from .nested import nested_parts
from .parts import Part
from .text_encoder import text_encoder_part
from .whole import denoiser_part, stop_parts


def fitting_compute(layout: Layout) -> Compute:
    """Neural Engine layers if each level has its own packages, else those for the GPU.

    In a single package the largest level decides, and its activations are too large for the engine.
    """
    return "ane" if layout == "nested" else "gpu"


def parts_of(source: ModelSource, layout: Layout, compute: Compute) -> list[Part]:
    """Parts in the order in which they run. Raises ConversionError if one cannot be converted.

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
