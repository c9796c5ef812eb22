"""A model folder, opened for sampling in MLX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mdm_apple.config.types import Precision
from mdm_apple.mlx.nested_unet import build_unet
from mdm_apple.mlx.runtime import MlxRuntime
from mdm_apple.mlx.text import CachedText, open_text
from mdm_apple.mlx.unet import UNet
from mdm_apple.mlx.weights import load_weights
from mdm_apple.storage import model_folder


def open_network(folder: Path) -> UNet:
    """The network of a model folder, with its averaged weights if there are any."""
    config = model_folder.load_model_config(folder)
    net = build_unet(config.model)
    load_weights(net, model_folder.load_weights(folder, model_folder.averaged(folder, "model")))
    net.freeze()
    mx.eval(net.parameters())
    return net


def open_runtime(
    folder: Path,
    *,
    precision: Precision = "fp32",
    features: Path | None = None,
    encoder_folder: Path | None = None,
    remember: Sequence[str] | None = None,
) -> MlxRuntime:
    """Load everything that sampling needs from a model folder.

    Args:
        remember: the only captions that will be used. Their features are computed at once, and the
            encoder is released before the network is loaded.
    """
    config = model_folder.load_model_config(folder)
    encode = open_text(folder, config, features=features, encoder_folder=encoder_folder)
    if remember is not None and encode is not None and config.text is not None:
        encode = CachedText(encode, config.text, remember)
        mx.clear_cache()
    return MlxRuntime(config, open_network(folder), encode, precision)
