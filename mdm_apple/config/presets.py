"""The named models, as one table.

Sources: mdm64, mdm256 and mdm1024 are the networks of Gu et al. 2023 (arXiv:2310.15111) with the
settings from the three configuration files published with the checkpoints; the encoder sizes come
from T5 1.1 and flan-T5. All others are this project's own.
"""

from __future__ import annotations

import dataclasses

from mdm_apple.config.model import (
    DiffusionConfig,
    ModelConfig,
    Provenance,
    ScheduleConfig,
    TextConfig,
    VideoConfig,
)
from mdm_apple.config.network import T5Config, UNetConfig
from mdm_apple.config.strict_json import unknown_name
from mdm_apple.errors import ConfigError

PUBLISHED_AT = "https://github.com/apple/ml-mdm"
FLAN_VOCABULARY = 32_128  # 32,100 pieces, which the authors padded to a multiple of 128


def _flan(d_model: int, d_ff: int, layers: int, heads: int) -> T5Config:
    return T5Config(FLAN_VOCABULARY, d_model, 64, d_ff, layers, heads)


FLAN_T5: dict[str, T5Config] = {
    "google/flan-t5-small": _flan(512, 1024, 8, 6),
    "google/flan-t5-base": _flan(768, 2048, 12, 12),
    "google/flan-t5-large": _flan(1024, 2816, 24, 16),
    "google/flan-t5-xl": _flan(2048, 5120, 24, 32),
    "google/flan-t5-xxl": _flan(4096, 10240, 24, 64),
}


def _published_core() -> UNetConfig:
    """The 64 px network: a model by itself, and the innermost level of the larger two."""
    return UNetConfig(
        channels=(256, 512, 768),
        num_resnets=(2, 2, 2),
        num_attention_layers=(0, 1, 5),
        attention_ffn=True,
        micro_conditions={"scale": 64.0},
        text_dim=2048,
        text_proj_dim=2048,
        masked_cross_attention=False,
    )


def _published_outer(
    channels: tuple[int, ...], scale: float, normalize: bool, inner: UNetConfig
) -> UNetConfig:
    return UNetConfig(
        channels=channels,
        num_resnets=(2, 2, 1),
        num_attention_layers=(0, 0, 0),
        mid_blocks=False,
        temb_dim=1024,
        micro_conditions={"scale": scale},
        normalize_input=normalize,
        inner=inner,
    )


def _published(model: UNetConfig, side: int, shift_power: float | None) -> ModelConfig:
    source = "google/flan-t5-xl"
    return ModelConfig(
        model=model,
        side=side,
        diffusion=DiffusionConfig(
            schedule=ScheduleConfig("deepfloyd", shift_power=shift_power),
            prediction="v",
            loss_target="eps",
        ),
        text=TextConfig(max_tokens=128, encoder=FLAN_T5[source], source=source),
        provenance=Provenance(source=PUBLISHED_AT),
    )


def _mdm1024() -> ModelConfig:
    # inside another level the 256 px level normalises its input; as the outermost one it does not
    middle = _published_outer((64, 128, 256), 256.0, True, _published_core())
    return _published(_published_outer((32, 32, 64), 1024.0, False, middle), 1024, 2.0)


def _emoji() -> ModelConfig:
    """16 inside 32 inside 64 px, small enough for a phone, with its own text encoder."""
    core = UNetConfig(
        channels=(48, 96, 160),
        num_resnets=(1, 1, 1),
        num_attention_layers=(0, 1, 1),
        attention_ffn=True,
        temb_dim=128,
        num_groups=16,
        text_dim=128,
    )
    middle = UNetConfig(
        channels=(32, 48),
        num_resnets=(1, 1),
        num_attention_layers=(0, 0),
        mid_blocks=False,
        temb_dim=128,
        num_groups=16,
        inner=core,
    )
    outer = UNetConfig(
        channels=(16, 32),
        num_resnets=(1, 1),
        num_attention_layers=(0, 0),
        mid_blocks=False,
        temb_dim=128,
        num_groups=16,
        inner=middle,
    )
    encoder = T5Config(vocab_size=1500, d_model=128, d_kv=32, d_ff=320, num_layers=2, num_heads=4)
    return ModelConfig(
        model=outer,
        side=64,
        diffusion=DiffusionConfig(
            # average pooling by s divides the noise variance by s squared, hence the power
            schedule=ScheduleConfig("cosine", shift_power=2.0),
            prediction="v",
            loss_target="v",
            # at high noise the caption alone decides the picture, so it gets weight and time
            loss_weighting="snr_plus_one",
            high_noise_share=0.15,
            mixed_ratio=(4.0, 1.0, 1.0),
            threshold="none",  # for --white-headroom, whose white lies outside the range
        ),
        text=TextConfig(max_tokens=16, encoder=encoder, lowercase=True, trainable=True),
        mixed_training=True,
    )


def _scenes() -> ModelConfig:
    """`emoji`, whose core also attends at 16 px: there a sentence says what lies where."""
    emoji = _emoji()
    assert emoji.model.inner is not None
    core = dataclasses.replace(
        emoji.model.innermost, channels=(64, 96, 160), num_attention_layers=(1, 1, 1)
    )
    middle = dataclasses.replace(emoji.model.inner, inner=core)
    # more pieces hardly shorten its captions: 6.0 tokens on average with 1,500, 5.8 with 2,600
    encoder = T5Config(vocab_size=1400, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
    return dataclasses.replace(
        emoji,
        model=dataclasses.replace(emoji.model, inner=middle),
        text=TextConfig(max_tokens=32, encoder=encoder, lowercase=True, trainable=True),
    )


def _tiny() -> ModelConfig:
    """8 inside 16 px: has every part of the large models and runs in seconds. For tests."""
    core = UNetConfig(
        channels=(32, 32),
        num_resnets=(1, 1),
        num_attention_layers=(0, 1),
        attention_ffn=True,
        temb_dim=64,
        micro_conditions={"scale": 8.0},
        text_dim=32,
    )
    outer = UNetConfig(
        channels=(32, 32),
        num_resnets=(1, 1),
        num_attention_layers=(0, 0),
        mid_blocks=False,
        temb_dim=64,
        micro_conditions={"scale": 16.0},
        inner=core,
    )
    encoder = T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return ModelConfig(
        model=outer,
        side=16,
        diffusion=DiffusionConfig(schedule=ScheduleConfig("cosine", shift_power=1.0)),
        text=TextConfig(max_tokens=16, encoder=encoder, lowercase=True, trainable=True),
    )


def _motion() -> ModelConfig:
    """16 frames of 32 px around 16 frames of 16 px around the first frame alone."""
    core = UNetConfig(
        channels=(32, 64, 96),
        num_resnets=(1, 1, 1),
        num_attention_layers=(0, 1, 1),
        attention_ffn=True,
        temb_dim=128,
        num_groups=16,
        text_dim=64,
    )
    time = UNetConfig(
        channels=(32, 32, 64, 64, 64),
        num_resnets=(1, 1, 1, 1, 1),
        num_attention_layers=(0, 0, 0, 0, 0),
        mid_blocks=False,
        temb_dim=128,
        num_groups=16,
        temporal=True,
        num_temporal_attention_layers=(1, 1, 1, 0, 0),
        temporal_positional_encoding=True,
        adapters_per_frame=True,
        inner=core,
    )
    space = UNetConfig(
        channels=(16, 32),
        num_resnets=(1, 1),
        num_attention_layers=(0, 0),
        mid_blocks=False,
        temb_dim=128,
        num_groups=16,
        temporal=True,
        temporal_spatial_resampling=True,
        adapters_per_frame=True,
        inner=time,
    )
    encoder = T5Config(vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    # few different words leave few pieces, so a caption has up to 22
    text = TextConfig(max_tokens=24, encoder=encoder, lowercase=True, trainable=True)
    return ModelConfig(
        model=space,
        side=128,
        diffusion=DiffusionConfig(
            # frames of a moving drawing do not average as a still would, hence not 2
            schedule=ScheduleConfig("cosine", shift_power=1.0),
            prediction="v",
            loss_target="v",
            loss_weighting="snr_plus_one",
            high_noise_share=0.15,
            mixed_ratio=(1.0, 1.0, 1.0),
            threshold="none",  # for --white-headroom
        ),
        text=text,
        mixed_training=True,
        video=VideoConfig(frames=16),
    )


def _tiny_video() -> ModelConfig:
    """4 frames of 8 px around the first alone. For tests."""
    tiny = _tiny()
    core = tiny.model.innermost
    time = UNetConfig(
        channels=(32, 32, 32),
        num_resnets=(1, 1, 1),
        num_attention_layers=(0, 0, 0),
        mid_blocks=False,
        temb_dim=64,
        temporal=True,
        num_temporal_attention_layers=(1, 0, 0),
        temporal_positional_encoding=True,
        inner=dataclasses.replace(core, micro_conditions={}),
    )
    return dataclasses.replace(tiny, model=time, video=VideoConfig(frames=4))


PRESETS: dict[str, ModelConfig] = {
    "mdm64": _published(_published_core(), 64, None),
    "mdm256": _published(
        _published_outer((64, 128, 256), 256.0, False, _published_core()), 256, 1.0
    ),
    "mdm1024": _mdm1024(),
    "emoji": _emoji(),
    "scenes": _scenes(),
    "motion": _motion(),
    "tiny": _tiny(),
    "tiny_video": _tiny_video(),
}


def preset(name: str) -> ModelConfig:
    """The configuration called `name`; raises ConfigError with the nearest known name."""
    if name not in PRESETS:
        raise ConfigError(f"preset: {name!r} is not known. {unknown_name(name, PRESETS)}")
    return PRESETS[name]
