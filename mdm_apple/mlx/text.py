"""Captions to features in MLX: through an encoder in memory, or from a cache.

Python's work on a caption (`inputs`) is separate from the encoder's work on arrays (`features`), so
that a compiled training step can contain the second half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.network import T5Config
from mdm_apple.mlx.t5 import T5Encoder, encoder_from_state, load_hf_encoder
from mdm_apple.storage import model_folder
from mdm_apple.text.feature_cache import FeatureCache
from mdm_apple.text.padding import seen_padding
from mdm_apple.text.source import TrainedEncoder, check_frozen, find_text
from mdm_apple.text.tokenizer import TextError, TextFeatures, Tokenizer

CAPTIONS_AT_ONCE = 8


# tokens or features; mask (B, L); padding seen (B, L) or None: see `TextFeatures`
Text = tuple[mx.array, mx.array, mx.array | None]
NO_TEXT = (None, None, None)  # for a network without text


class EncodeText(Protocol):
    """Captions to features (B, L, text_dim), mask (B, L) and the padding seen."""

    @property
    def encoder(self) -> T5Encoder | None:
        """The encoder in memory, if any."""
        ...

    def inputs(self, captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        """Arrays that depend on the captions alone: token ids or features, and the masks.

        Args:
            beside: the other caption of each picture; see `text.padding`.
        """
        ...

    def features(self, values: mx.array, mask: mx.array, seen: mx.array | None) -> Text:
        """Features and masks from these arrays; gradients flow into a trainable encoder."""
        ...


class ThroughEncoder:
    """Tokens, always padded to `text.max_tokens`, then the encoder."""

    def __init__(self, encoder: T5Encoder, tokenizer: Tokenizer, text: TextConfig) -> None:
        self.encoder, self._tokenizer, self._text = encoder, tokenizer, text

    def inputs(self, captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        tokens = self._tokenizer.encode(captions, self._text.max_tokens, pad_to_max=True)
        largest, size = int(tokens.ids.max()), self.encoder.config.vocab_size
        if largest >= size:
            raise TextError(
                f"tokens: id {largest} is beyond the encoder's {size} pieces; "
                "use the tokenizer that came with it."
            )
        seen = seen_padding(self._text, tokens.mask, self._count, beside)
        return mx.array(tokens.ids), mx.array(tokens.mask), _array(seen)

    def features(self, values: mx.array, mask: mx.array, seen: mx.array | None) -> Text:
        return self.encoder(values, mask), mask, seen

    def _count(self, captions: Sequence[str]) -> NDArray[np.int64]:
        return self._tokenizer.lengths(captions, self._text.max_tokens)


class ThroughCache:
    """Features computed by `mdm embed`; the encoder is never in memory."""

    encoder = None

    def __init__(self, cache: FeatureCache, text: TextConfig) -> None:
        self._cache, self._text = cache, text

    def inputs(self, captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        found = self._cache.lookup(captions, length=self._text.max_tokens)
        seen = seen_padding(self._text, found.mask, self._cache.lengths, beside)
        return mx.array(found.values), mx.array(found.mask), _array(seen)

    def features(self, values: mx.array, mask: mx.array, seen: mx.array | None) -> Text:
        return values, mask, seen


class CachedText:
    """Features of known captions, computed once; afterwards the encoder is not needed."""

    encoder = None

    def __init__(self, encode: EncodeText, text: TextConfig, captions: Sequence[str]) -> None:
        self._text = text
        self._rows: dict[str, tuple[mx.array, mx.array]] = {}
        wanted = list(dict.fromkeys(captions))
        for first in range(0, len(wanted), CAPTIONS_AT_ONCE):
            part = wanted[first : first + CAPTIONS_AT_ONCE]
            values, mask, _ = encode.features(*encode.inputs(part))
            mx.eval(values, mask)
            self._rows |= {c: (values[i], mask[i]) for i, c in enumerate(part)}
        mx.eval(list(self._rows.values()))

    def inputs(self, captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
        rows = [self._rows[caption] for caption in captions]
        mask = mx.stack([mask for _, mask in rows])
        seen = seen_padding(self._text, np.array(mask), self._count, beside)
        return mx.stack([values for values, _ in rows]), mask, _array(seen)

    def features(self, values: mx.array, mask: mx.array, seen: mx.array | None) -> Text:
        return values, mask, seen

    def _count(self, captions: Sequence[str]) -> NDArray[np.int64]:
        return np.array([np.count_nonzero(self._rows[caption][1]) for caption in captions])


def _array(seen: NDArray[np.float32] | None) -> mx.array | None:
    return None if seen is None else mx.array(seen)


def open_text(
    folder: Path,
    config: ModelConfig,
    *,
    features: Path | None = None,
    encoder_folder: Path | None = None,
) -> EncodeText | None:
    """The encoder of captions for a model folder; None for a model without text.

    See `source.find_text` for the places searched, and the exceptions.
    """
    source = find_text(folder, config, features=features, encoder_folder=encoder_folder)
    if source is None or config.text is None:
        return None
    if isinstance(source, FeatureCache):
        return ThroughCache(source, config.text)
    if isinstance(source, TrainedEncoder):
        encoder = load_trained_encoder(folder, source.config)
    else:
        encoder = load_frozen_encoder(source.folder, source.config)
    return ThroughEncoder(encoder, source.tokenizer, config.text)


def open_frozen_text(
    folder: Path, config: ModelConfig, encoder_folder: Path | None = None
) -> Callable[[list[str]], TextFeatures[NDArray[np.float32]]]:
    """The same, as NumPy arrays, for `feature_cache.embed_captions`."""
    encode = open_text(folder, config, encoder_folder=encoder_folder)
    assert encode is not None, "called only for a model with text"

    def as_numpy(captions: list[str]) -> TextFeatures[NDArray[np.float32]]:
        values, mask, _ = encode.features(*encode.inputs(captions))
        return TextFeatures(np.array(values.astype(mx.float32)), np.array(mask))

    return as_numpy


def load_frozen_encoder(source: Path, config: T5Config) -> T5Encoder:
    """The encoder of a Hugging Face folder, which must match `config`.

    It is in bf16 on a GPU, where its billion weights would otherwise crowd out the network.
    """
    dtype = mx.bfloat16 if mx.default_device() == mx.Device(mx.gpu) else mx.float32
    found, state = load_hf_encoder(source, dtype)
    check_frozen(source, found, config)
    return encoder_from_state(config, state)


def load_trained_encoder(folder: Path, config: T5Config) -> T5Encoder:
    """The encoder that was trained with the denoiser, with averaged weights if there are any."""
    weights = model_folder.load_weights(folder, model_folder.averaged(folder, "text_encoder"))
    return encoder_from_state(config, {name: mx.array(value) for name, value in weights.items()})
