"""Opening a training run in PyTorch: network, encoder, device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.errors import MdmError
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.torch.learner import TorchPictureLearner, to_torch
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.processes import own_gpu
from mdm_apple.torch.t5 import T5Encoder
from mdm_apple.torch.text import EncodeText, open_text, through_encoder
from mdm_apple.torch.unet import UNet
from mdm_apple.training.start import Job, Start, common_prefix


def open_learner(
    config: ModelConfig,
    job: Job,
    tokenizer: Tokenizer | None,
    start: Start,
    device: torch.device | None = None,
) -> TorchPictureLearner:
    """A learner with fresh weights or the weights of `start`; `run.OpenLearner` for torch."""
    device = device or default_device()
    torch.manual_seed(job.train.seed)
    net = build_unet(config.model)
    if start.weights is not None:
        load_part(net, start.weights)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder, encode = _text(config, job, tokenizer, start, device)
    return TorchPictureLearner(net, config, job.train, encode, encoder, start.dropout_by_row)


def default_device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return own_gpu()
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_part(net: UNet, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Load weights strictly; a smaller model's weights go strictly into its level."""
    incompatible = net.load_state_dict(to_torch(weights), strict=False)
    prefix = common_prefix(weights)
    missing = [key for key in incompatible.missing_keys if key.startswith(prefix)]
    if incompatible.unexpected_keys or missing:
        first = (incompatible.unexpected_keys + missing)[0]
        raise MdmError(
            f"weights: {first} does not fit this configuration; use the one it came with."
        )


def _text(
    config: ModelConfig,
    job: Job,
    tokenizer: Tokenizer | None,
    start: Start,
    device: torch.device,
) -> tuple[T5Encoder | None, EncodeText | None]:
    text = config.text
    if text is None:
        return None, None
    if tokenizer is None or text.encoder is None:
        encode = open_text(
            job.init or job.out,
            config,
            device,
            features=job.features,
            encoder_folder=job.text_encoder,
        )
        return None, encode
    encoder = T5Encoder(text.encoder)
    if start.encoder is not None:
        encoder.load_state_dict(to_torch(start.encoder))
    encoder = encoder.to(device)
    return encoder, through_encoder(encoder, tokenizer, text)
