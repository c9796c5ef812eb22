"""Captions to features on a torch device: through an encoder in memory, or from a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.network import T5Config
from mdm_apple.storage import model_folder
from mdm_apple.text.feature_cache import FeatureCache
from mdm_apple.text.padding import seen_padding
from mdm_apple.text.source import TrainedEncoder, check_frozen, find_text
from mdm_apple.text.tokenizer import TextFeatures, Tokenizer
from mdm_apple.torch.t5 import T5Encoder, encoder_from_state, load_hf_encoder, text_features

Text = tuple[Tensor, Tensor, Tensor | None]  # the fields of `TextFeatures`
NO_TEXT = (None, None, None)  # for a network without text


class EncodeText(Protocol):
    """Captions to features; gradients flow into a trainable encoder."""

    def __call__(self, captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        """Features (B, L, text_dim), mask (B, L) and the padding seen, (B, L) or None.

        Args:
            beside: the other caption of each picture; see `text.padding`.
        """
        ...


def through_encoder(encoder: T5Encoder, tokenizer: Tokenizer, text: TextConfig) -> EncodeText:
    """Tokens, always padded to `text.max_tokens`, then the encoder."""

    def count(captions: Sequence[str]) -> NDArray[np.int64]:
        return tokenizer.lengths(captions, text.max_tokens)

    def encode(captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        tokens = tokenizer.encode(captions, text.max_tokens, pad_to_max=True)
        features = text_features(encoder, tokens)
        seen = seen_padding(text, tokens.mask, count, beside)
        # a frozen encoder may be in bf16
        return features.values.float(), features.mask, _on(features.mask.device, seen)

    return encode


def through_cache(cache: FeatureCache, text: TextConfig, device: torch.device) -> EncodeText:
    """Features computed by `mdm embed`; the encoder is never in memory."""

    def encode(captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        found = cache.lookup(captions, length=text.max_tokens)
        seen = seen_padding(text, found.mask, cache.lengths, beside)
        values, mask = (torch.from_numpy(part).to(device) for part in (found.values, found.mask))
        return values, mask, _on(device, seen)

    return encode


def _on(device: torch.device, seen: NDArray[np.float32] | None) -> Tensor | None:
    return None if seen is None else torch.from_numpy(seen).to(device)


def open_text(
    folder: Path,
    config: ModelConfig,
    device: torch.device,
    *,
    features: Path | None = None,
    encoder_folder: Path | None = None,
) -> EncodeText | None:
    """The function from captions to features for a model folder; None for a model without text.

    See `source.find_text` for the places searched, and the exceptions.
    """
    source = find_text(folder, config, features=features, encoder_folder=encoder_folder)
    if source is None or config.text is None:
        return None
    if isinstance(source, FeatureCache):
        return through_cache(source, config.text, device)
    if isinstance(source, TrainedEncoder):
        encoder = load_trained_encoder(folder, source.config)
    else:
        dtype = torch.bfloat16 if device.type != "cpu" else None
        encoder = load_frozen_encoder(source.folder, source.config, dtype)
    return through_encoder(encoder.to(device), source.tokenizer, config.text)


def open_frozen_text(
    folder: Path, config: ModelConfig, encoder_folder: Path | None = None
) -> Callable[[list[str]], TextFeatures[NDArray[np.float32]]]:
    """The same, as NumPy arrays and without gradients, for `feature_cache.embed_captions`."""
    encode = open_text(folder, config, torch.device("cpu"), encoder_folder=encoder_folder)
    assert encode is not None, "called only for a model with text"

    @torch.inference_mode()
    def as_numpy(captions: list[str]) -> TextFeatures[NDArray[np.float32]]:
        values, mask, _ = encode(captions)
        return TextFeatures(values.float().cpu().numpy(), mask.float().cpu().numpy())

    return as_numpy


def load_frozen_encoder(
    source: Path, config: T5Config, dtype: torch.dtype | None = None
) -> T5Encoder:
    """The encoder of a Hugging Face folder, which must match `config`."""
    found, state = load_hf_encoder(source, dtype)
    check_frozen(source, found, config)
    return encoder_from_state(config, state)


def load_trained_encoder(folder: Path, config: T5Config) -> T5Encoder:
    """The encoder that was trained with the denoiser, with averaged weights if there are any."""
    weights = model_folder.load_weights(folder, model_folder.averaged(folder, "text_encoder"))
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    return encoder_from_state(config, state)
