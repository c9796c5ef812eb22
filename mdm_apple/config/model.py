"""Every setting of a model, as frozen dataclasses with strict JSON in and out.

Enters: a `config.json`, a preset or keyword arguments. Leaves: a checked, immutable configuration.
Unknown, duplicate and missing keys are refused with the nearest known name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from mdm_apple.errors import ConfigError

ATTENTION_HEADS = 8  # fixed in the published networks, not a setting
ATTENTION_GROUPS = 32  # likewise: the GroupNorm in front of every 2-D attention
TEMPORAL_HEAD_WIDTH = 32  # likewise: channels of a head of temporal attention

MAX_NEST = 5
MAX_STAGES = 14  # one more halves MAX_SIDE away
MAX_CHANNELS = 8192
MAX_SIDE = 8192
MAX_PARAMETERS = 20_000_000_000  # of network and text encoder: 80 GB in fp32


@dataclass(frozen=True)
class Student:
    """Extra inputs of a distilled network; each adds one zero-initialised embedding per level."""

    target_time: bool = True
    guidance: bool = True


@dataclass(frozen=True)
class UNetConfig:
    """One level of the nest: a UNet, and the smaller one inside it.

    Tuples with one entry per stage of this UNet (stage 0 is its own full resolution).
    The innermost level owns the text path; outer levels reuse what it computed.
    """

    channels: tuple[int, ...]
    num_resnets: tuple[int, ...]
    num_attention_layers: tuple[int, ...]  # per resnet of the stage; 0 for none
    attention_ffn: bool = False
    mid_blocks: bool = True  # an outer level never runs them; published outer levels have none
    temb_dim: int | None = None  # None: 4 x channels[0]; equal on all levels of a nest
    num_groups: int = 32
    dropout: float = 0.0
    micro_conditions: dict[str, float] = field(default_factory=dict)  # name -> default
    normalize_input: bool = False  # outer levels: divide x_t by its own standard deviation
    text_dim: int | None = None  # width of the text features handed in; innermost level only
    text_proj_dim: int | None = None  # width after the projection inside; None: no projection
    num_text_head_layers: int = 0
    masked_cross_attention: bool = True
    temporal: bool = False  # video: frames tiled in a square grid
    temporal_spatial_resampling: bool = False  # resample each frame instead of the frame axis
    num_temporal_attention_layers: tuple[int, ...] = ()
    temporal_positional_encoding: bool = False
    interp_conditioning: bool = False  # two Linears that published code creates and never runs
    freeze_inner: bool = False
    student: Student | None = None
    inner: UNetConfig | None = None

    def __post_init__(self) -> None:
        stages = len(self.channels)
        if not 1 <= stages <= MAX_STAGES:
            raise ConfigError(
                f"channels: expected 1 to {MAX_STAGES} stages, got {stages or 'none'}."
            )
        _check_lengths(self, stages)
        _check_widths(self)
        _check_text(self)
        _check_temporal(self)
        _check_nest(self)

    @property
    def levels(self) -> tuple[UNetConfig, ...]:
        """This level and all inside it, highest resolution first."""
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
    def scales(self) -> tuple[int, ...]:
        """Side of each level over the innermost side, highest first: (16, 4, 1) for mdm1024."""
        inner = self.inner.scales if self.inner else ()
        return (self.ratio * (inner[0] if inner else 1), *inner)

    @property
    def side_multiple(self) -> int:
        """The side of level 0 must be a multiple of this."""
        return self.scales[0] * 2 ** (len(self.innermost.channels) - 1)


ScheduleKind = Literal["cosine", "linear", "deepfloyd", "sigmoid"]
Prediction = Literal["eps", "v"]
LossTarget = Literal["eps", "v", "x0"]
LossWeighting = Literal["plain", "min_snr", "snr_plus_one", "vdm"]
Threshold = Literal["none", "clip", "dynamic", "dynamic_if"]


@dataclass(frozen=True)
class ScheduleConfig:
    """The alpha_bar table and how it moves with the scale of a level."""

    kind: ScheduleKind = "deepfloyd"
    num_steps: int = 1000
    beta_start: float = 1e-4  # linear only
    beta_end: float = 2e-2  # linear only
    shift_power: float | None = None  # SNR of a level is divided by scale**power; None: no shift

    def __post_init__(self) -> None:
        if not 2 <= self.num_steps <= 100_000:
            raise ConfigError(f"schedule.num_steps: expected 2 to 100000, got {self.num_steps}.")
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ConfigError(
                "schedule.beta_start, beta_end: expected 0 < beta_start < beta_end < 1, got "
                f"{self.beta_start} and {self.beta_end}."
            )


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise, prediction and loss. Per-level tuples run from the highest resolution down."""

    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Prediction = "v"
    loss_target: LossTarget = "v"
    loss_weighting: LossWeighting = "plain"
    level_weights: tuple[float, ...] | None = None  # None: 1 for every level
    mixed_ratio: tuple[float, ...] | None = None  # shares of a batch, see `mixed_fractions`
    high_noise_share: float = 0.0  # share of t drawn from the top of the table
    high_noise_start: float = 0.85  # where that top begins, as a fraction of the table
    rescale_signal: float | None = None  # plain UNet: x0 is divided by it
    output_scale: float = 0.0  # plain UNet: out = s tanh(out / s); 0 for none
    threshold: Threshold = "clip"

    def __post_init__(self) -> None:
        if not 0 <= self.high_noise_share <= 1 or not 0 <= self.high_noise_start < 1:
            raise ConfigError(
                "diffusion.high_noise_share, high_noise_start: expected numbers from 0 to 1, got "
                f"{self.high_noise_share} and {self.high_noise_start}."
            )
        for name in ("level_weights", "mixed_ratio"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) < 0 or sum(values) <= 0):
                raise ConfigError(
                    f"diffusion.{name}: expected one weight of 0 or more per level, got {values}."
                )
        if self.rescale_signal is not None and self.rescale_signal <= 0:
            raise ConfigError(
                f"diffusion.rescale_signal: expected more than 0, got {self.rescale_signal}."
            )

    @property
    def mixed_fractions(self) -> tuple[float, ...] | None:
        """Share of the batch that each level sees: (2, 1) gives (2/3, 1)."""
        if self.mixed_ratio is None:
            return None
        total, running, out = sum(self.mixed_ratio), 0.0, []
        for part in self.mixed_ratio:
            running += part
            out.append(running / total)
        return tuple(out)


# field of a T5Config -> the largest value that is believed
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
    """Encoder half of a T5. The defaults beyond the sizes are those of T5 1.1 and flan-T5."""

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
            if not 1 <= getattr(self, name) <= largest:
                raise ConfigError(f"{name}: expected 1 to {largest}, got {getattr(self, name)}.")
        buckets, distance = self.relative_buckets, self.relative_max_distance
        if buckets % 4 or distance <= buckets // 4:
            raise ConfigError(
                "relative_buckets: expected a multiple of 4, less than four times the largest "
                f"distance {distance}, got {buckets}."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: expected 0 up to but not 1, got {self.dropout}.")
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps: expected between 0 and 1, got {self.norm_eps}.")


@dataclass(frozen=True)
class TextConfig:
    """How a caption becomes features; without `encoder` they come from elsewhere only."""

    max_tokens: int
    encoder: T5Config | None = None
    lowercase: bool = False
    trainable: bool = False  # the encoder is trained with the denoiser and lies in the folder
    source: str | None = None  # repository of a frozen encoder, e.g. google/flan-t5-xl
    revision: str | None = None
    encoder_sha256: str | None = None
    tokenizer_sha256: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 4096:
            raise ConfigError(f"text.max_tokens: expected 1 to 4096, got {self.max_tokens}.")
        if self.trainable and self.encoder is None:
            raise ConfigError("text.trainable: true needs text.encoder, which is to be trained.")


@dataclass(frozen=True)
class Distilled:
    """What a student learned to do; its network has `model.student`.

    starts: table indices that it jumps from, noisiest first: one for a single step, K for up to K.
    guidance: smallest and largest weight that it was shown; None: it takes none.
    """

    starts: tuple[int, ...]
    guidance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise((*self.starts, 0)))
        if not self.starts or not falling:
            raise ConfigError(
                f"distilled.starts: expected falling table indices above 0, got {self.starts}."
            )
        if self.guidance is not None and not (
            len(self.guidance) == 2 and -100 <= self.guidance[0] <= self.guidance[1] <= 100
        ):
            raise ConfigError(
                "distilled.guidance: expected the smallest and largest weight within -100 to 100, "
                f"got {self.guidance}."
            )


@dataclass(frozen=True)
class Provenance:
    """Where weights and data come from; travels from folder to manifest to report."""

    license: str | None = None
    source: str | None = None
    base_model: str | None = None
    notes: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` of a model folder holds."""

    model: UNetConfig
    side: int  # pixels of level 0
    diffusion: DiffusionConfig = DiffusionConfig()
    text: TextConfig | None = None
    provenance: Provenance = Provenance()
    mixed_training: bool = False  # whether inner levels were trained without the ones above
    distilled: Distilled | None = None  # None: a model that denoises step by step
    format: int = 1

    def __post_init__(self) -> None:
        if self.format != 1:
            raise ConfigError(
                f"format: this version reads 1, got {self.format}. Install a newer mdm-apple."
            )
        multiple = self.model.side_multiple
        if not 0 < self.side <= MAX_SIDE or self.side % multiple:
            raise ConfigError(
                f"side: expected a multiple of {multiple} up to {MAX_SIDE}, got {self.side}."
            )
        if (self.text is None) != (self.model.text_width is None):
            raise ConfigError("text: expected settings exactly when model.text_dim is given.")
        encoder = self.text.encoder if self.text else None
        if encoder and encoder.d_model != self.model.innermost.text_dim:
            raise ConfigError(
                f"text.encoder.d_model: expected {self.model.innermost.text_dim} to match "
                f"model.text_dim, got {encoder.d_model}."
            )
        depth = len(self.model.levels)
        for name in ("level_weights", "mixed_ratio"):
            values = getattr(self.diffusion, name)
            if values is not None and len(values) != depth:
                raise ConfigError(
                    f"diffusion.{name}: expected {depth} values, one per level, got {len(values)}."
                )
        _check_distilled(self)
        _check_parameters(self)

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of each level, highest first: (1024, 256, 64)."""
        scales = self.model.scales
        return tuple(self.side * s // scales[0] for s in scales)


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
        if not 0 < width <= MAX_CHANNELS:
            raise ConfigError(f"channels: expected 1 to {MAX_CHANNELS}, got {width}.")
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
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"dropout: expected 0 up to but not 1, got {config.dropout}.")
    for name, default in config.micro_conditions.items():
        if not name.isidentifier():
            raise ConfigError(f"micro_conditions: {name!r} is not a plain name.")
        if name == "scale" and default <= 0:
            raise ConfigError(f"micro_conditions: scale must be more than 0, got {default}.")


def _check_text(config: UNetConfig) -> None:
    for name, value in (("text_dim", config.text_dim), ("text_proj_dim", config.text_proj_dim)):
        if value is not None and not 0 < value <= MAX_CHANNELS:
            raise ConfigError(f"{name}: expected 1 to {MAX_CHANNELS} or null, got {value}.")
    if config.inner is not None and (config.text_dim or config.text_proj_dim):
        raise ConfigError("text_dim, text_proj_dim: only the innermost level carries them.")
    if config.text_dim is None and (config.text_proj_dim or config.num_text_head_layers):
        raise ConfigError("text_proj_dim, num_text_head_layers: need text_dim.")
    if not 0 <= config.num_text_head_layers <= 64:
        raise ConfigError(
            f"num_text_head_layers: expected 0 to 64, got {config.num_text_head_layers}."
        )
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
        return
    if config.inner is None:
        raise ConfigError("temporal: only a level with an inner one can be temporal.")
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
    if config.time_dim != config.inner.time_dim:
        raise ConfigError(
            f"temb_dim: all levels of a nest share one, got {config.time_dim} outside "
            f"and {config.inner.time_dim} inside."
        )
    if config.ratio < 2:
        raise ConfigError("channels: an outer level needs two stages or more, to reach the inner.")
    if config.student != config.inner.student:
        raise ConfigError("student: all levels of a nest share one setting.")


def _check_distilled(config: ModelConfig) -> None:
    distilled, student = config.distilled, config.model.student
    if distilled is None:
        return
    if student is None or not student.target_time:
        raise ConfigError("distilled: needs model.student with target_time.")
    if student.guidance != (distilled.guidance is not None):
        raise ConfigError("distilled.guidance: expected exactly when model.student has guidance.")
    if distilled.starts[0] != config.diffusion.schedule.num_steps:
        raise ConfigError(
            f"distilled.starts: expected to begin at {config.diffusion.schedule.num_steps}, the "
            f"end of the table, got {distilled.starts[0]}."
        )


def _check_parameters(config: ModelConfig) -> None:
    """Refuse what no machine holds while it is still a list of shapes."""
    from mdm_apple.config.shapes import parameter_count
    from mdm_apple.text.encoder_folder import encoder_shapes

    count = parameter_count(config.model)
    if config.text and config.text.encoder:
        count += sum(math.prod(shape) for shape in encoder_shapes(config.text.encoder).values())
    if count > MAX_PARAMETERS:
        raise ConfigError(
            f"model, text.encoder: expected at most {MAX_PARAMETERS // 10**9} billion parameters, "
            f"got {count / 1e9:.1f} billion; choose fewer or narrower stages and layers."
        )
