"""A network, every level of the nest, and a text encoder, as frozen dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mdm_apple.config.ranges import in_range
from mdm_apple.config.strict_json import ADDED_LATER
from mdm_apple.errors import ConfigError

ATTENTION_HEADS = 8  # fixed in the published networks, not a setting
ATTENTION_GROUPS = 32  # likewise: groups of the GroupNorm before every 2-D attention
TEMPORAL_HEAD_WIDTH = 32  # likewise: channels per head of temporal attention
MAX_NEST = 5
MAX_STAGES = 14  # with one more, MAX_SIDE would be halved to nothing
MAX_CHANNELS = 8192


@dataclass(frozen=True)
class Student:
    """Extra inputs of a distilled network; each adds one zero-initialised embedding per level."""

    target_time: bool = True
    guidance: bool = True


@dataclass(frozen=True)
class UNetConfig:
    """One level of the nest: a UNet, and the smaller one inside it.

    Tuples with one entry per stage of this UNet (stage 0 is its own full resolution).
    The innermost level owns the text path; outer levels reuse its results.
    """

    channels: tuple[int, ...]
    num_resnets: tuple[int, ...]
    num_attention_layers: tuple[int, ...]  # per resnet of the stage; 0 for none
    attention_ffn: bool = False
    mid_blocks: bool = True  # an outer level never runs its middle blocks; published ones have none
    temb_dim: int | None = None  # None: 4 x channels[0]; equal on all levels of a nest
    num_groups: int = 32
    dropout: float = 0.0
    micro_conditions: dict[str, float] = field(default_factory=dict)  # name -> default
    normalize_input: bool = False  # outer levels: divide x_t by its own standard deviation
    text_dim: int | None = None  # width of the input text features; innermost level only
    text_proj_dim: int | None = (
        None  # width after the network's own projection; None: no projection
    )
    num_text_head_layers: int = 0
    masked_cross_attention: bool = True
    temporal: bool = False  # video: frames tiled in a square grid
    temporal_spatial_resampling: bool = False  # resample each frame instead of the frame axis
    num_temporal_attention_layers: tuple[int, ...] = ()
    temporal_positional_encoding: bool = False
    adapters_per_frame: bool = field(default=False, metadata=ADDED_LATER)  # else across the canvas
    interp_conditioning: bool = False  # two Linears that published code creates and never runs
    freeze_inner: bool = False
    student: Student | None = None
    inner: UNetConfig | None = None

    def __post_init__(self) -> None:
        stages = len(self.channels)
        in_range("channels", stages, 1, MAX_STAGES, what="stages")
        _check_lengths(self, stages)
        _check_widths(self)
        _check_text(self)
        _check_temporal(self)
        _check_nest(self)

    @property
    def levels(self) -> tuple[UNetConfig, ...]:
        """This level and all levels inside it, highest resolution first."""
        return (self,) + (self.inner.levels if self.inner else ())

    @property
    def innermost(self) -> UNetConfig:
        return self.levels[-1]

    @property
    def time_dim(self) -> int:
        """Width of the time embedding, called D in the notes: temb_dim or 4 x channels[0]."""
        return self.temb_dim or 4 * self.channels[0]

    @property
    def text_width(self) -> int | None:
        """Width of the text features that cross-attention sees; None without text."""
        core = self.innermost
        return core.text_proj_dim or core.text_dim if core.text_dim else None

    @property
    def ratio(self) -> int:
        """Side of this level over the side of the next one inside (1 if none is inside)."""
        if self.inner is None:
            return 1
        steps = 2 ** (len(self.channels) - 1)
        return math.isqrt(steps) if self.resamples_frames else steps

    @property
    def resamples_frames(self) -> bool:
        """Whether this level halves the number of frames where an image level halves the side."""
        return self.temporal and not self.temporal_spatial_resampling

    @property
    def frame_grid(self) -> int:
        """Frames per side of the square that tiles this level's images; 1 for pictures."""
        inside = self.inner.frame_grid if self.inner else 1
        return self.ratio * inside if self.resamples_frames else inside

    @property
    def scales(self) -> tuple[int, ...]:
        """Side of each level over the innermost side, highest first: (16, 4, 1) for mdm1024."""
        inner = self.inner.scales if self.inner else ()
        return (self.ratio * (inner[0] if inner else 1), *inner)

    @property
    def side_multiple(self) -> int:
        """The side of level 0 must be a multiple of this."""
        return self.scales[0] * 2 ** (len(self.innermost.channels) - 1)


# field of a T5Config -> its largest accepted value
T5_LIMITS = {
    "vocab_size": 1 << 20,
    "d_model": 1 << 14,
    "d_kv": 1 << 10,
    "d_ff": 1 << 17,
    "num_layers": 256,
    "num_heads": 1 << 10,
    "relative_buckets": 1 << 10,
    "relative_max_distance": 1 << 16,
}


@dataclass(frozen=True)
class T5Config:
    """Encoder half of a T5. Apart from sizes, the defaults are those of T5 1.1 and flan-T5."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout: float = 0.0
    norm_eps: float = 1e-6
    feed_forward: Literal["relu", "gated-gelu"] = "gated-gelu"

    def __post_init__(self) -> None:
        for name, largest in T5_LIMITS.items():
            in_range(name, getattr(self, name), 1, largest)
        buckets, distance = self.relative_buckets, self.relative_max_distance
        if buckets % 4 or distance <= buckets // 4:
            raise ConfigError(
                "relative_buckets: expected a multiple of 4, less than four times the largest "
                f"distance {distance}, got {buckets}."
            )
        in_range("dropout", self.dropout, 0, 1, below=True)
        in_range("norm_eps", self.norm_eps, 0, 1, above=True, below=True)


def _check_lengths(config: UNetConfig, stages: int) -> None:
    for name in ("num_resnets", "num_attention_layers"):
        got = getattr(config, name)
        if len(got) != stages:
            raise ConfigError(
                f"{name}: expected {stages} values, one per stage of channels, got {len(got)}."
            )
    if min(config.num_resnets) < 1 or max(config.num_resnets) > 64:
        raise ConfigError(f"num_resnets: expected 1 to 64 per stage, got {config.num_resnets}.")
    if min(config.num_attention_layers) < 0 or max(config.num_attention_layers) > 64:
        raise ConfigError(
            f"num_attention_layers: expected 0 to 64 per stage, got {config.num_attention_layers}."
        )


def _check_widths(config: UNetConfig) -> None:
    for width in config.channels:
        in_range("channels", width, 1, MAX_CHANNELS)
        if config.num_groups < 1 or width % config.num_groups:
            raise ConfigError(
                f"num_groups: expected a divisor of every width in channels {config.channels}, "
                f"got {config.num_groups}."
            )
    attended = [c for c, n in zip(config.channels, config.num_attention_layers, strict=True) if n]
    if config.mid_blocks:
        attended.append(config.channels[-1])
    for width in attended:
        if width % ATTENTION_GROUPS:
            raise ConfigError(
                f"channels: stages with attention (and the last one, for the middle block) need a "
                f"multiple of {ATTENTION_GROUPS}, got {width}."
            )
    if not 0 < config.time_dim <= 65536 or config.time_dim % 8:
        raise ConfigError(f"temb_dim: expected a multiple of 8 up to 65536, got {config.time_dim}.")
    in_range("dropout", config.dropout, 0, 1, below=True)
    for name, default in config.micro_conditions.items():
        if not name.isidentifier():
            raise ConfigError(f"micro_conditions: {name!r} is not a plain name.")
        if name == "scale" and default <= 0:
            raise ConfigError(f"micro_conditions: scale must be more than 0, got {default}.")


def _check_text(config: UNetConfig) -> None:
    in_range("text_dim", config.text_dim, 1, MAX_CHANNELS, what="or null")
    in_range("text_proj_dim", config.text_proj_dim, 1, MAX_CHANNELS, what="or null")
    if config.inner is not None and (config.text_dim or config.text_proj_dim):
        raise ConfigError("text_dim, text_proj_dim: only the innermost level has them.")
    if config.text_dim is None and (config.text_proj_dim or config.num_text_head_layers):
        raise ConfigError("text_proj_dim, num_text_head_layers: need text_dim.")
    in_range("num_text_head_layers", config.num_text_head_layers, 0, 64)
    width = config.text_width
    if config.num_text_head_layers and width and width % ATTENTION_HEADS:
        raise ConfigError(
            f"text_proj_dim: text head layers need a multiple of {ATTENTION_HEADS}, got {width}."
        )


def _check_temporal(config: UNetConfig) -> None:
    layers = config.num_temporal_attention_layers
    if not config.temporal:
        if layers or config.temporal_spatial_resampling or config.temporal_positional_encoding:
            raise ConfigError("temporal_*: these settings need temporal: true.")
        if config.adapters_per_frame:
            raise ConfigError("adapters_per_frame: needs temporal: true.")
        return
    if config.inner is None:
        raise ConfigError("temporal: only a level with an inner level can be temporal.")
    if layers and len(layers) != len(config.channels):
        raise ConfigError(
            f"num_temporal_attention_layers: expected {len(config.channels)} values, "
            f"one per stage, got {len(layers)}."
        )
    if layers and (min(layers) < 0 or max(layers) > 64):
        raise ConfigError(
            f"num_temporal_attention_layers: expected 0 to 64 per stage, got {layers}."
        )
    for width, count in zip(config.channels, layers, strict=False):
        if count and width % TEMPORAL_HEAD_WIDTH:
            raise ConfigError(
                "channels: stages with temporal attention need a multiple of "
                f"{TEMPORAL_HEAD_WIDTH}, got {width}."
            )
    if any(layers) and config.temporal_spatial_resampling:
        raise ConfigError(
            "num_temporal_attention_layers: not available with temporal_spatial_resampling."
        )
    if config.resamples_frames and (len(config.channels) - 1) % 2:
        raise ConfigError(
            "channels: resampling frames needs an odd number of stages, so that a square grid of "
            f"frames stays square; got {len(config.channels)}."
        )


def _check_nest(config: UNetConfig) -> None:
    if config.inner is None:
        return
    if len(config.levels) > MAX_NEST:
        raise ConfigError(f"inner: at most {MAX_NEST} levels, got {len(config.levels)}.")
    if not config.temporal and config.inner.temporal:
        raise ConfigError(
            "inner: a level of pictures cannot lie around a level of video; give it temporal: true "
            "and temporal_spatial_resampling: true."
        )
    if config.time_dim != config.inner.time_dim:
        raise ConfigError(
            f"temb_dim: all levels of a nest need the same, got {config.time_dim} outside "
            f"and {config.inner.time_dim} inside."
        )
    if config.ratio < 2:
        raise ConfigError(
            "channels: an outer level needs two or more stages to reach the inner level."
        )
    if config.student != config.inner.student:
        raise ConfigError("student: all levels of a nest need the same setting.")
