"""Models small enough to run in milliseconds, with weights that are random everywhere."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.config.model import ModelConfig, NullPrompt, Padding
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.shapes import encoder_shapes, state_shapes
from mdm_apple.storage.model_folder import save_model
from mdm_apple.text.tokenizer import train_tokenizer

TEXT_DIM = 16
CAPTIONS = (
    "red heart",
    "blue heart",
    "grinning cat face",
    "house with garden",
    "green apple",
    "yellow banana",
    "person running",
    "snow-capped mountain",
    "keycap digit three",
    "flag of a small island",
    "sun behind cloud",
    "hatching chick",
    "evergreen tree",
    "fork and knife",
    "steaming bowl",
    "jack-o-lantern",
)
# a small network in the words of Apple's configuration files
APPLE_YAML = """\
model: unet
text_model: google/flan-t5-small
unet_config:
  resolution_channels: [32, 64]
  num_resnets_per_resolution: [1, 1]
  attention_levels: [1]
diffusion_config:
  sampler_config: {num_diffusion_steps: 1000, schedule_type: DEEPFLOYD}
reader_config: {image_size: 64, max_token_length: 64}
"""


def plain(**changes: Any) -> UNetConfig:
    """8 px and up: two stages, text, micro-conditions, attention with FFN."""
    settings: dict[str, Any] = {
        "channels": (32, 64),
        "num_resnets": (1, 2),
        "num_attention_layers": (0, 1),
        "attention_ffn": True,
        "temb_dim": 32,
        "micro_conditions": {"scale": 8.0},
        "text_dim": TEXT_DIM,
    }
    return UNetConfig(**settings | changes)


def around(inner: UNetConfig, **changes: Any) -> UNetConfig:
    """A level of twice the side around another one."""
    settings: dict[str, Any] = {
        "channels": (32, 32),
        "num_resnets": (1, 1),
        "num_attention_layers": (0, 0),
        "mid_blocks": False,
        "temb_dim": 32,
        "micro_conditions": {"scale": 8.0 * 2 * inner.scales[0]},
        "inner": inner,
    }
    return UNetConfig(**settings | changes)


def video(inner: UNetConfig, **changes: Any) -> UNetConfig:
    """A level with four times the frames around another one; three stages, as that needs."""
    stages: dict[str, Any] = {
        "channels": (32, 32, 32),
        "num_resnets": (1, 1, 1),
        "num_attention_layers": (0, 0, 0),
        "num_temporal_attention_layers": (0, 1, 0),
        "temporal": True,
    }
    return around(inner, **stages | changes)


def random_state(config: UNetConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a trained-looking network: random where a fresh one has zeros, too."""
    return random_weights(state_shapes(config), seed)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    out = {}
    for name, shape in shapes.items():
        if name.endswith(".freqs"):
            value = 10_000.0 ** -(np.arange(shape[0]) / shape[0])
        elif len(shape) == 1:
            value = 0.1 * random.standard_normal(shape) + name.endswith("weight")
        else:
            value = random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        out[name] = value.astype(np.float32)
    return out


def random_text(rows: int, tokens: int = 5, seed: int = 1) -> np.ndarray:
    """Text features (rows, tokens, TEXT_DIM)."""
    return normal(seed, rows, tokens, TEXT_DIM)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def noisy_images(config: UNetConfig, rows: int, side: int, seed: int = 2) -> list[np.ndarray]:
    """x_t of every level, highest first, the lowest of `side` pixels."""
    return [normal(seed + i, rows, 3, side * s, side * s) for i, s in enumerate(config.scales)]


def inner_model(config: ModelConfig) -> ModelConfig:
    """The model that is left without the outermost level."""
    inner = config.model.inner
    assert inner is not None
    return dataclasses.replace(config, model=inner, side=config.sides[1])


def save_random_model(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, np.ndarray] | None = None,
    encoder_seed: int = 1,
) -> Path:
    """A model folder with random weights, its own encoder and a tokenizer."""
    assert config.text is not None
    assert config.text.encoder is not None
    encoder = config.text.encoder
    tokenizer = train_tokenizer(CAPTIONS, encoder.vocab_size, lowercase=True)
    text = dataclasses.replace(config.text, tokenizer_sha256=tokenizer.sha256)
    save_model(
        folder,
        dataclasses.replace(config, text=text),
        random_state(config.model) if weights is None else weights,
        text_encoder=random_weights(encoder_shapes(encoder), encoder_seed),
        tokenizer=tokenizer.model,
    )
    return folder


def trainable_model() -> ModelConfig:
    """4 inside 8 px with an encoder that learns along: the smallest whole training run."""
    tiny = preset("tiny")
    assert tiny.text is not None
    assert tiny.text.encoder is not None
    core = plain(channels=(32,), num_resnets=(1,), num_attention_layers=(0,), text_dim=32)
    encoder = dataclasses.replace(tiny.text.encoder, d_ff=32)
    return dataclasses.replace(
        tiny,
        model=around(core),
        side=8,
        text=dataclasses.replace(tiny.text, max_tokens=8, encoder=encoder),
    )


def longest_model(padding: Padding = "longest", null_prompt: NullPrompt = "space") -> ModelConfig:
    """4 inside 8 px; without a mask, so how many of 24 tokens it sees is part of the picture.

    Unless told otherwise, its text is like that of Apple's models.
    """
    config = trainable_model()
    core = plain(
        channels=(32,),
        num_resnets=(1,),
        num_attention_layers=(1,),
        text_dim=32,
        masked_cross_attention=False,
    )
    assert config.text is not None
    text = dataclasses.replace(config.text, max_tokens=24, padding=padding, null_prompt=null_prompt)
    return dataclasses.replace(config, model=around(core), text=text)


def small_emoji(side: int = 32) -> ModelConfig:
    """The emoji preset, narrower and of half the side: three levels, mixed batches, text.

    With less side its norms would see a single pixel, and gradients would be ill-conditioned.
    """
    config = preset("emoji")
    assert config.text is not None
    assert config.text.encoder is not None
    outer, middle, core = config.model.levels
    core = dataclasses.replace(core, channels=(32, 64, 64), temb_dim=64, text_dim=32)
    middle = dataclasses.replace(middle, channels=(32, 32), temb_dim=64, inner=core)
    outer = dataclasses.replace(outer, channels=(32, 32), temb_dim=64, inner=middle)
    encoder = dataclasses.replace(
        config.text.encoder, vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=1
    )
    text = dataclasses.replace(config.text, max_tokens=8, encoder=encoder)
    return dataclasses.replace(config, model=outer, side=side, text=text)
