"""Captions to features on a torch device: through an encoder in memory, or from a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdm_apple import checkpoint
from mdm_apple.atomic_folder import has_file
from mdm_apple.config import ModelConfig, T5Config, TextConfig
from mdm_apple.errors import MdmError
from mdm_apple.features import FeatureCache, FeatureKey
from mdm_apple.hub import ENCODER_FOLDER, TOKENIZER_FILE
from mdm_apple.text import TextFeatures, Tokenizer
from mdm_apple.torch.t5 import T5Encoder, encoder_from_state, load_hf_encoder, text_features

# captions -> features (B, L, text_dim) and mask (B, L); gradients flow where the encoder learns
EncodeText = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


def through_encoder(encoder: T5Encoder, tokenizer: Tokenizer, text: TextConfig) -> EncodeText:
    """Tokens, always padded to `text.max_tokens`, then the encoder."""

    def encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenizer.encode(captions, text.max_tokens, pad_to_max=True)
        features = text_features(encoder, tokens)
        return features.values, features.mask

    return encode


def through_cache(cache: FeatureCache, text: TextConfig, device: torch.device) -> EncodeText:
    """Features computed by `mdm embed`, so that the encoder is never in memory."""

    def encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = cache.lookup(captions, length=text.max_tokens)
        return torch.from_numpy(found.values).to(device), torch.from_numpy(found.mask).to(device)

    return encode


def open_text(
    folder: Path,
    config: ModelConfig,
    device: torch.device,
    *,
    features: Path | None = None,
    encoder_folder: Path | None = None,
    averaged: bool = True,
) -> EncodeText | None:
    """What turns captions into features for a model folder; None for a model without text.

    In this order: a feature cache if one is given, the encoder that was trained with the model,
    a frozen encoder in `encoder_folder` or fetched beside the model. Raises MdmError with the
    remedies if there is none of these.
    """
    text = config.text
    if text is None:
        return None
    if features is not None:
        return through_cache(FeatureCache(features, FeatureKey.of(text)), text, device)
    if text.trainable and text.encoder is not None:
        tokenizer = Tokenizer(checkpoint.load_tokenizer(folder), lowercase=text.lowercase)
        encoder = load_trained_encoder(folder, text.encoder, averaged).to(device)
        return through_encoder(encoder, tokenizer, text)
    source = encoder_folder or folder / ENCODER_FOLDER
    if not source.is_dir():
        raise MdmError(
            f"{folder}: this model reads features of {text.source}, which is not here; run "
            f"`mdm fetch text-encoder --out {folder}`, or give --features made by `mdm embed`."
        )
    if text.encoder is None:
        raise MdmError(f"{folder}: names no text encoder; give --features made by `mdm embed`.")
    dtype = torch.bfloat16 if device.type != "cpu" else None
    encoder = load_frozen_encoder(source, text.encoder, dtype)
    tokenizer = Tokenizer.load(
        source / TOKENIZER_FILE, lowercase=text.lowercase, expected_sha256=text.tokenizer_sha256
    )
    return through_encoder(encoder.to(device), tokenizer, text)


def open_frozen_text(
    folder: Path, config: ModelConfig, encoder_folder: Path | None = None
) -> Callable[[list[str]], TextFeatures[NDArray[np.float32]]]:
    """The same as NumPy arrays and without gradients, for `features.embed_captions`."""
    encode = open_text(folder, config, torch.device("cpu"), encoder_folder=encoder_folder)
    assert encode is not None, "asked for a model with text only"

    @torch.inference_mode()
    def as_numpy(captions: list[str]) -> TextFeatures[NDArray[np.float32]]:
        values, mask = encode(captions)
        return TextFeatures(values.float().cpu().numpy(), mask.float().cpu().numpy())

    return as_numpy


def load_frozen_encoder(
    source: Path, config: T5Config, dtype: torch.dtype | None = None
) -> T5Encoder:
    """The encoder of a Hugging Face folder, which must be the one that `config` describes."""
    found, state = load_hf_encoder(source, dtype)
    if dataclasses.replace(found, dropout=config.dropout) != config:
        raise MdmError(
            f"{source}: holds another text encoder than the model was trained with; fetch the one "
            "that its config.json names."
        )
    return encoder_from_state(config, state)


def load_trained_encoder(folder: Path, config: T5Config, averaged: bool = True) -> T5Encoder:
    """The encoder that was trained with the denoiser, its averaged weights where there are some."""
    which = "text_encoder"
    if averaged and has_file(folder, "text_encoder_ema.safetensors"):
        which = "text_encoder_ema"
    weights = checkpoint.load_weights(folder, which)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    return encoder_from_state(config, state)
