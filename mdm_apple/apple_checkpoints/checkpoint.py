"""The only entry for Apple's YAML configurations and .pth checkpoints. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mdm_apple.apple_checkpoints.pickle_walk import PthError
from mdm_apple.apple_checkpoints.pth import PthTensor, read_pth
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import PRESETS
from mdm_apple.config.shapes import state_shapes
from mdm_apple.storage.atomic_folder import CheckpointError
from mdm_apple.storage.model_folder import Weights, check_weights


def as_apple_reads(config: ModelConfig) -> ModelConfig:
    """A configuration whose captions become tokens and padding as in Apple's programs."""
    if config.text is None:
        return config
    return replace(config, text=replace(config.text, padding="longest", null_prompt="space"))


def import_apple(path: Path, config: ModelConfig) -> Weights:
    """The weights of one of Apple's checkpoints, float32, in the order of the state dict.

    float32 values are read-only views of the mapped file. Raises PthError if the file cannot be
    read, or if its names, shapes or values do not match `config` exactly.
    """
    tensors = read_pth(path).state_dict
    shapes = state_shapes(config.model)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        _refuse_mismatch(path, found, shapes)
    floats = {name: _float32(path, name, tensor) for name, tensor in tensors.items()}
    try:
        return check_weights(floats, shapes, str(path))
    except CheckpointError as error:
        raise PthError(str(error)) from None


def _refuse_mismatch(
    path: Path, found: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]
) -> None:
    missing = [name for name in shapes if name not in found]
    unexpected = [name for name in found if name not in shapes]
    other = [n for n in shapes if n in found and found[n] != shapes[n]]
    parts = [
        f"{len(names)} {word} (first {names[0][:80]!r})"
        for names, word in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (other, "of another shape"),
        )
        if names
    ]
    fits = [name for name, preset in PRESETS.items() if state_shapes(preset.model) == found]
    way_out = f"its weights are those of --preset {fits[0]}" if fits else "check --preset or --yaml"
    if other and not missing and not unexpected and other[0].endswith("lm_proj.weight"):
        width, expected = shapes[other[0]][-1], found[other[0]][-1]
        way_out = f"it takes text features {expected} wide, and the text encoder's are {width} wide"
    raise PthError(
        f"{path}: does not hold this network's {len(shapes)} weights: "
        f"{', '.join(parts)}; {way_out}."
    )


def _float32(path: Path, name: str, tensor: PthTensor) -> np.ndarray:
    if tensor.dtype not in ("float32", "float16", "bfloat16", "float64"):
        raise PthError(
            f"{path}: {name} should hold floating-point numbers, but holds {tensor.dtype}."
        )
    return tensor.numpy().astype(np.float32, copy=False)
