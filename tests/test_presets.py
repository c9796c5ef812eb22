"""The presets, and the names and shapes that are computed without a framework."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import Student, UNetConfig
from mdm_apple.config.presets import FLAN_T5, PRESETS, preset
from mdm_apple.config.shapes import encoder_shapes, parameter_count, state_shapes
from mdm_apple.config.strict_json import from_json, to_json
from mdm_apple.errors import ConfigError
from mdm_apple.torch.nested_unet import build_on_meta

KEYS = Path(__file__).parent / "golden" / "keys"
PUBLISHED = {
    "mdm64": ("keys_cc12m_64x64.json", 713, 461_359_107),
    "mdm256": ("keys_cc12m_256x256.json", 889, 476_613_958),
    "mdm1024": ("keys_cc12m_1024x1024.json", 1063, 480_970_057),
}


def torch_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in build_on_meta(config).state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_apples_keys_shapes_order_and_count(name: str) -> None:
    file, keys, parameters = PUBLISHED[name]
    listed = {k: tuple(v) for k, v in json.loads((KEYS / file).read_text()).items()}
    shapes = state_shapes(preset(name).model)
    assert list(shapes.items()) == list(listed.items())
    assert (len(shapes), parameter_count(preset(name).model)) == (keys, parameters)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_shapes_are_those_of_the_torch_network(name: str) -> None:
    assert state_shapes(preset(name).model) == torch_shapes(preset(name).model)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert from_json(ModelConfig, to_json(preset(name))) == preset(name)


def test_flan_t5_xl_has_the_known_size() -> None:
    shapes = encoder_shapes(FLAN_T5["google/flan-t5-xl"])
    assert sum(math.prod(s) for s in shapes.values()) == 1_223_527_424


@pytest.mark.parametrize("student", [None, Student()])
def test_emoji_with_its_text_encoder_has_at_most_8_million_weights(student: Student | None) -> None:
    config = preset("emoji")
    model = config.model
    for level in reversed(model.levels):
        inner = None if level.inner is None else model
        model = dataclasses.replace(level, student=student, inner=inner)
    assert config.text is not None
    assert config.text.encoder is not None
    text = sum(math.prod(s) for s in encoder_shapes(config.text.encoder).values())
    assert parameter_count(model) + text <= 8_000_000
    assert config.sides == (64, 32, 16)


def test_unknown_preset_is_refused_with_the_near_name() -> None:
    with pytest.raises(ConfigError, match=r"'mdm265' is not known\. Did you mean 'mdm256'\?"):
        preset("mdm265")


def random_config(rng: random.Random, depth: int) -> UNetConfig:
    """A valid configuration of any kind; every option is reached by some seed."""
    student = rng.choice([None, Student(True, False), Student(False, True), Student()])
    text = rng.choice([None, 24, 40])
    projection = rng.choice([None, 16, 32]) if text else None
    heads = rng.choice([0, 2]) if text else 0
    stages = rng.randint(1, 3)
    config = UNetConfig(
        channels=tuple(rng.choice([32, 64, 96]) for _ in range(stages)),
        num_resnets=tuple(rng.randint(1, 2) for _ in range(stages)),
        num_attention_layers=tuple(rng.randint(0, 2) for _ in range(stages)),
        attention_ffn=rng.random() < 0.5,
        mid_blocks=rng.random() < 0.7,
        temb_dim=64,
        micro_conditions=rng.choice([{}, {"scale": 64.0}, {"scale": 8.0, "watermark": 0.0}]),
        text_dim=text,
        text_proj_dim=projection,
        num_text_head_layers=heads,
        interp_conditioning=rng.random() < 0.3,
        student=student,
    )
    for _ in range(depth - 1):
        temporal, spatial = config.temporal or rng.random() < 0.5, rng.random() < 0.5
        stages = rng.choice([3, 5]) if temporal and not spatial else rng.randint(2, 3)
        frames = tuple(rng.randint(0, 1) for _ in range(stages))
        config = UNetConfig(
            channels=tuple(rng.choice([32, 64]) for _ in range(stages)),
            num_resnets=tuple(rng.randint(1, 2) for _ in range(stages)),
            num_attention_layers=tuple(rng.randint(0, 1) for _ in range(stages)),
            mid_blocks=rng.random() < 0.3,
            temb_dim=64,
            temporal=temporal,
            temporal_spatial_resampling=temporal and spatial,
            temporal_positional_encoding=temporal and rng.random() < 0.5,
            num_temporal_attention_layers=frames if temporal and not spatial else (),
            interp_conditioning=rng.random() < 0.3,
            student=student,
            inner=config,
        )
    return config


@pytest.mark.parametrize("seed", range(40))
def test_shapes_are_those_of_the_torch_network_for_any_configuration(seed: int) -> None:
    config = random_config(random.Random(seed), depth=1 + seed % 3)
    assert state_shapes(config) == torch_shapes(config)
