"""The input of a conversion: network, text encoder and tokenizer from a folder, or random ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import T5Config
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.config.types import TextEncoderChoice
from mdm_apple.storage.atomic_folder import has_file
from mdm_apple.storage.model_folder import load_model_config, load_tokenizer, with_encoder_hash
from mdm_apple.text.encoder_folder import ENCODER_FOLDER, TOKENIZER_FILE, require_encoder
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.torch.load import open_network
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.t5 import T5Encoder
from mdm_apple.torch.text import load_frozen_encoder, load_trained_encoder
from mdm_apple.torch.unet import UNet

SMALL_ENCODER_MB = 250  # flan-t5-base takes 219, flan-t5-xl 2447


@dataclass(frozen=True)
class ModelSource:
    """A model in evaluation mode; encoder and tokenizer are None if features are cached."""

    config: ModelConfig
    net: UNet
    encoder: T5Encoder | None = None
    tokenizer: bytes | None = None


def load_source(folder: Path, text_encoder: TextEncoderChoice = "auto") -> ModelSource:
    """Load a model folder, with averaged weights if there are any. Raises MdmError.

    Args:
        text_encoder: "auto" takes an encoder trained with the model, or a small one fetched into
            the folder; "yes" also takes a large one, and refuses a folder without any.
    """
    config = with_encoder_hash(folder, load_model_config(folder))
    net = open_network(folder)
    text = config.text
    if text is None or text.encoder is None or text_encoder == "no":
        return ModelSource(config, net, None, _tokenizer(folder))
    if text.trainable:
        return ModelSource(
            config, net, load_trained_encoder(folder, text.encoder), _tokenizer(folder)
        )
    fetched = folder / ENCODER_FOLDER
    small = encoder_megabytes(text.encoder) <= SMALL_ENCODER_MB
    if text_encoder == "auto" and not (small and fetched.is_dir()):
        return ModelSource(config, net, None, _tokenizer(folder))
    require_encoder(folder, text)
    encoder = load_frozen_encoder(fetched, text.encoder).float()
    tokenizer = Tokenizer.load(
        fetched / TOKENIZER_FILE, lowercase=text.lowercase, expected_sha256=text.tokenizer_sha256
    )
    return ModelSource(config, net, encoder, tokenizer.model)


def encoder_megabytes(config: T5Config) -> float:
    """Size of an encoder in fp16, in millions of bytes."""
    return 2 * sum(math.prod(shape) for shape in encoder_shapes(config).values()) / 1e6


def random_source(
    config: ModelConfig, seed: int, with_encoder: bool = True, tokenizer: bytes | None = None
) -> ModelSource:
    """A network with seeded random weights; zero-initialised layers too, so that they matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_unet(config.model)
        _fill_zeros(net)
        encoder = None
        if with_encoder and config.text and config.text.encoder:
            encoder = T5Encoder(config.text.encoder).eval().requires_grad_(False)
    return ModelSource(config, net.eval().requires_grad_(False), encoder, tokenizer)


def _tokenizer(folder: Path) -> bytes | None:
    return load_tokenizer(folder) if has_file(folder, "tokenizer.model") else None


def _fill_zeros(net: nn.Module) -> None:
    """Fill zero weights at half of the usual deviation, and zero biases at 0.02."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
                parameter.normal_(std=0.5 * fan_in**-0.5 if fan_in else 0.02)
