"""Every setting of a model, as frozen dataclasses with strict JSON in and out.

Enters: a `config.json`, a preset or keyword arguments. Leaves: a checked, immutable configuration.
Unknown, duplicate and missing keys are refused with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mdm_apple.errors import MdmError

ATTENTION_HEADS = 8  # fixed in the published networks, not a setting
ATTENTION_GROUPS = 32  # likewise: the GroupNorm in front of every 2-D attention
TEMPORAL_HEAD_WIDTH = 32  # likewise: channels of a head of temporal attention

MAX_NEST = 5
MAX_CHANNELS = 8192
MAX_SIDE = 8192


class ConfigError(MdmError):
    """A configuration that cannot be built; names the field, the value and the way out."""


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
        if stages == 0:
            raise ConfigError("channels: expected at least one stage, got none.")
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


# --- strict JSON ------------------------------------------------------------------------------

T = TypeVar("T")


def to_json(config: Any) -> str:
    """The configuration as indented JSON with a trailing newline; every field is written."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[T], text: str, where: str = "config") -> T:
    """Parse strict JSON into the dataclass `kind`; raises ConfigError with the offending key."""
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error}).") from None
    return from_dict(kind, data, where)


def from_dict(kind: type[T], data: object, where: str = "config") -> T:
    """Build the dataclass `kind` from plain JSON values, refusing anything unknown or missing."""
    return typing.cast(T, _convert(kind, data, where))


def read_config(kind: type[T], path: Path) -> T:
    """Read one configuration file of at most 1 MiB."""
    try:
        if path.stat().st_size > 1 << 20:
            raise ConfigError(f"{path}: expected a configuration of at most 1 MiB.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    return from_json(kind, text, str(path))


def unknown_name(name: str, known: typing.Iterable[str]) -> str:
    """' Did you mean ...?' or the list of known names, to end a refusal with."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(options)}."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ConfigError(f"key {key!r} appears twice; keep one.")
        seen[key] = value
    return seen


def _no_constant(name: str) -> float:
    raise ConfigError(f"{name} is not a number that JSON allows.")


def _convert(kind: Any, value: object, where: str) -> object:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return _convert(inner[0], value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where}: expected one of {', '.join(map(str, args))}, got {value!r}."
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {_shown(value)}.")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, got {_shown(value)}.")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, where)
    return _convert_scalar(kind, value, where)


def _convert_dataclass(kind: Any, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected an object, got {_shown(value)}.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}. {unknown_name(str(key), fields)}")
    for name, spec in fields.items():
        required = (
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        )
        if required and name not in value:
            raise ConfigError(f"{where}: key {name!r} is missing.")
    built = {k: _convert(hints[k], v, f"{where}.{k}") for k, v in value.items()}
    try:
        return kind(**built)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert_scalar(kind: Any, value: object, where: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: expected {_NAMES[kind]}, got {_shown(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value}.")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
