"""A model folder, opened for sampling in PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch

from mdm_apple.config.types import Precision
from mdm_apple.storage import model_folder
from mdm_apple.torch.nested_unet import build_on_meta
from mdm_apple.torch.open_run import default_device
from mdm_apple.torch.runtime import TorchRuntime
from mdm_apple.torch.text import open_text
from mdm_apple.torch.unet import UNet


def open_network(folder: Path) -> UNet:
    """The network of a model folder on the CPU, with its averaged weights if there are any."""
    config = model_folder.load_model_config(folder)
    weights = model_folder.load_weights(folder, model_folder.averaged(folder, "model"))
    net = build_on_meta(config.model)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net.requires_grad_(False).eval()


def open_runtime(
    folder: Path,
    *,
    precision: Precision = "fp32",
    features: Path | None = None,
    encoder_folder: Path | None = None,
    device: torch.device | None = None,
) -> TorchRuntime:
    """Load everything that sampling needs from a model folder."""
    device = device or default_device()
    config = model_folder.load_model_config(folder)
    net = open_network(folder)
    encode = open_text(folder, config, device, features=features, encoder_folder=encoder_folder)
    return TorchRuntime(config, net, encode, device, precision, packed=True)
