"""Where the text features of a model folder come from, found without a framework.

Input: a model folder and the caller's choices. Output: a cache, an encoder that was trained with
the model, or a frozen one, with its tokenizer; torch/text and mlx/text load it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import T5Config
from mdm_apple.errors import MdmError
from mdm_apple.storage import model_folder
from mdm_apple.text.encoder_folder import ENCODER_FOLDER, TOKENIZER_FILE
from mdm_apple.text.feature_cache import FeatureCache
from mdm_apple.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainedEncoder:
    """Weights in the model folder itself."""

    config: T5Config
    tokenizer: Tokenizer


@dataclass(frozen=True)
class FrozenEncoder:
    """A Hugging Face folder."""

    config: T5Config
    tokenizer: Tokenizer
    folder: Path


def find_text(
    folder: Path,
    config: ModelConfig,
    *,
    features: Path | None = None,
    encoder_folder: Path | None = None,
) -> FeatureCache | TrainedEncoder | FrozenEncoder | None:
    """The source of text features for a model folder; None for a model without text.

    The first of these that exists: a given feature cache, the encoder that was trained with the
    model, a frozen encoder in `encoder_folder` or in the model folder. Raises MdmError with the
    remedies if there is none.
    """
    text = config.text
    if text is None:
        return None
    if features is not None:
        named = model_folder.with_encoder_hash(folder, config).text
        return FeatureCache.for_text(features, named or text)
    if text.trainable and text.encoder is not None:
        tokenizer = Tokenizer(
            model_folder.load_tokenizer(folder),
            lowercase=text.lowercase,
            null_prompt=text.null_prompt,
        )
        return TrainedEncoder(text.encoder, tokenizer)
    source = encoder_folder or folder / ENCODER_FOLDER
    if not source.is_dir():
        raise MdmError(
            f"{folder}: this model needs features from {text.source}, which is missing; run "
            f"`mdm fetch text-encoder --out {folder}`, or give --features made by `mdm embed`."
        )
    if text.encoder is None:
        raise MdmError(f"{folder}: names no text encoder; give --features made by `mdm embed`.")
    tokenizer = Tokenizer.load(
        source / TOKENIZER_FILE,
        lowercase=text.lowercase,
        null_prompt=text.null_prompt,
        expected_sha256=text.tokenizer_sha256,
    )
    return FrozenEncoder(text.encoder, tokenizer, source)


def check_frozen(source: Path, found: T5Config, config: T5Config) -> None:
    """Refuse an encoder that is not the one a model was trained with."""
    if dataclasses.replace(found, dropout=config.dropout) != config:
        raise MdmError(
            f"{source}: is not the text encoder that the model was trained with; fetch the one "
            "that its config.json names."
        )
