"""A model folder: configuration, weights, text encoder, and the state of a training run.

Input: numpy arrays under the names of Apple's state dicts. Output: the same arrays, checked against
the configuration. No framework is needed, nothing is unpickled, and a save is all or nothing
(atomic_folder.py).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import encoder_shapes, state_shapes
from mdm_apple.config.strict_json import read_config, to_json
from mdm_apple.config.types import NumpyArray
from mdm_apple.errors import MdmError
from mdm_apple.storage.atomic_folder import (
    CheckpointError,
    has_file,
    read_file,
    recorded_hashes,
    replace_files,
)
from mdm_apple.storage.tensorfile import Storage, Written, read_tensors, write_bytes, write_tensors

MAX_TOKENIZER_BYTES = 16 << 20  # T5's own tokenizer has 0.8 MB, the 250,000-piece mT5's 4.3 MB

Weights = dict[str, NumpyArray]
Which = Literal["model", "ema", "text_encoder", "text_encoder_ema"]

MAX_STATE_BYTES = 16 << 20


@dataclass(frozen=True)
class Training:
    """State for resuming, besides the weights.

    tensors: of any number type, kept bit for bit (optimiser moments, random state as uint8).
    meta: plain JSON values (step, data position); integers of any size.
    """

    tensors: Weights
    meta: dict[str, Any]


def save_model(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, NumpyArray],
    *,
    ema: Mapping[str, NumpyArray] | None = None,
    text_encoder: Mapping[str, NumpyArray] | None = None,
    text_encoder_ema: Mapping[str, NumpyArray] | None = None,
    tokenizer: bytes | None = None,
    training: Training | None = None,
    storage: Storage = "float32",
) -> None:
    """Replace the folder's contents with this model, in one step that a kill cannot split.

    Weights and training state are saved together on purpose: a kill could separate two saves.
    Raises CheckpointError, with the folder unchanged, if names, shapes or values do not match the
    configuration, or if the disk refuses.

    Args:
        storage: number type of the weights on disk; training tensors keep their own.
    """
    writers: dict[str, Callable[[Path], Written]] = {
        "config.json": functools.partial(write_bytes, data=to_json(config).encode())
    }
    parts: tuple[tuple[Which, Mapping[str, NumpyArray] | None], ...] = (
        ("model", weights),
        ("ema", ema),
        ("text_encoder", text_encoder),
        ("text_encoder_ema", text_encoder_ema),
    )
    for which, tensors in parts:
        if tensors is not None:
            name = f"{which}.safetensors"
            shapes = _expected_shapes(folder, config, which)
            ordered = check_weights(tensors, shapes, f"{folder}: {name}", storage)
            writers[name] = functools.partial(write_tensors, tensors=ordered, storage=storage)
    if tokenizer is not None:
        writers["tokenizer.model"] = functools.partial(write_bytes, data=tokenizer)
    if training is not None:
        text = _state_json(folder, training.meta)
        writers["training.safetensors"] = functools.partial(write_tensors, tensors=training.tensors)
        writers["training.json"] = functools.partial(write_bytes, data=text)
    replace_files(folder, writers)


def save_config(folder: Path, config: ModelConfig) -> None:
    """Replace config.json only; every other file of the save stays unchanged.

    Raises CheckpointError if the folder's weights would no longer match the configuration, or if
    the disk refuses.
    """
    before = load_model_config(folder)
    encoders = [c.text.encoder if c.text else None for c in (before, config)]
    if before.model != config.model or encoders[0] != encoders[1]:
        raise CheckpointError(f"{folder}: its weights belong to a different network.")
    write = functools.partial(write_bytes, data=to_json(config).encode())
    replace_files(folder, {"config.json": write}, keep_others=True)


def load_model_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder; raises ConfigError or CheckpointError."""
    return read_file(folder, "config.json", functools.partial(read_config, ModelConfig))


def load_weights(folder: Path, which: Which = "model") -> Weights:
    """Weights in memory as float32, in the order of the state dict.

    Raises CheckpointError if a name is missing or unexpected, a shape does not match the
    configuration, or a value is not finite; TensorFileError if the file is damaged.
    """
    name = f"{which}.safetensors"
    shapes = _expected_shapes(folder, load_model_config(folder), which)
    tensors = read_file(folder, name, read_tensors)
    ordered = check_weights(tensors, shapes, f"{folder}: {name}")
    return {key: np.array(value, np.float32) for key, value in ordered.items()}


def averaged(folder: Path, part: Literal["model", "text_encoder"]) -> Which:
    """The averaged weights of a part if the folder has them, else the part itself."""
    which: Which = "ema" if part == "model" else "text_encoder_ema"
    return which if has_file(folder, f"{which}.safetensors") else part


def averaged_encoder(folder: Path) -> Weights | None:
    """Averaged weights of the text encoder that was trained with the model, if any."""
    if not has_file(folder, "text_encoder.safetensors"):
        return None
    return load_weights(folder, averaged(folder, "text_encoder"))


def weights_sha256(folder: Path) -> str | None:
    """Recorded hash of the weights for sampling and distilling; None if none is recorded."""
    hashes = recorded_hashes(folder)
    weights = hashes.get("ema.safetensors") or hashes.get("model.safetensors")
    return weights.sha256 if weights else None


def with_encoder_hash(folder: Path, config: ModelConfig) -> ModelConfig:
    """The configuration with the hash of the text encoder that was trained with the model.

    config.json already names a frozen encoder; a trained one changes with every save, so its hash
    is taken from its current averaged weights.
    """
    text = config.text
    if text is None or not text.trainable or not has_file(folder, "text_encoder.safetensors"):
        return config
    recorded = recorded_hashes(folder).get(f"{averaged(folder, 'text_encoder')}.safetensors")
    sha256 = recorded.sha256 if recorded else None
    return dataclasses.replace(config, text=dataclasses.replace(text, encoder_sha256=sha256))


def load_tokenizer(folder: Path) -> bytes:
    """The SentencePiece model that was saved with the text encoder.

    Raises CheckpointError if its hash is not the one in config.json.
    """
    read = functools.partial(_read, limit=MAX_TOKENIZER_BYTES)
    model = read_file(folder, "tokenizer.model", read)
    text = load_model_config(folder).text
    if text and text.tokenizer_sha256 not in (None, hashlib.sha256(model).hexdigest()):
        raise CheckpointError(
            f"{folder}: tokenizer.model is not the one the model was trained with; restore it from "
            "a copy."
        )
    return model


def load_training_meta(folder: Path) -> dict[str, Any]:
    """What a run notes beside its tensors; raises CheckpointError if there is none."""
    text = read_file(folder, "training.json", functools.partial(_read, limit=MAX_STATE_BYTES))
    try:
        meta: object = json.loads(text)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise CheckpointError(f"{folder}: training.json is damaged; start without --resume.")
    return cast("dict[str, Any]", meta)


def load_training(folder: Path) -> Training:
    """The state of the run that saved this folder; raises CheckpointError if there is none."""
    meta = load_training_meta(folder)
    tensors = read_file(folder, "training.safetensors", read_tensors)
    copies = {name: np.array(value) for name, value in tensors.items()}
    return Training(copies, meta)


def check_weights(
    weights: Mapping[str, NumpyArray],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    storage: Storage = "float32",
) -> dict[str, NumpyArray]:
    """The weights in the order of `shapes`, or CheckpointError for the first fault found.

    Args:
        storage: number type that must be able to hold the values.
    """
    _check_names(weights, shapes, where)
    largest = float(np.finfo(np.float16).max) if storage == "float16" else np.inf
    for name, shape in shapes.items():
        value = weights[name]
        if value.shape != shape:
            raise CheckpointError(f"{where}: {name} should be {shape}, but is {value.shape}.")
        if not np.issubdtype(value.dtype, np.floating):
            raise CheckpointError(
                f"{where}: {name} should hold floating-point numbers, but holds {value.dtype}."
            )
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinite values; go back to an earlier save."
            )
        if value.size and float(np.abs(value).max()) > largest:
            raise CheckpointError(f"{where}: {name} exceeds float16; store it as bfloat16.")
    return {name: weights[name] for name in shapes}


def _expected_shapes(
    folder: Path, config: ModelConfig, which: Which
) -> Mapping[str, tuple[int, ...]]:
    if which in ("model", "ema"):
        return state_shapes(config.model)
    if config.text is None or config.text.encoder is None:
        raise CheckpointError(f"{folder}: its configuration has no text encoder.")
    return encoder_shapes(config.text.encoder)


def _check_names(
    weights: Mapping[str, NumpyArray], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    missing = [name for name in shapes if name not in weights]
    unexpected = [name for name in weights if name not in shapes]
    parts = [
        f"{len(names)} {word} (first {names[0][:80]!r})"
        for names, word in ((missing, "missing"), (unexpected, "unexpected"))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{where}: weights do not belong to this configuration: {' and '.join(parts)} of "
            f"{len(shapes)}."
        )


def _state_json(folder: Path, meta: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(meta, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: training state cannot be stored ({error}).") from None


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise MdmError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > limit:
        raise CheckpointError(f"{path}: expected at most {limit >> 20} MiB.")
    return data
