"""Every setting of a model, as frozen dataclasses with strict JSON in and out.

Input: a `config.json`, a preset or keyword arguments. Output: a checked, immutable configuration.
Unknown, duplicate and missing keys are refused with the nearest known name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from mdm_apple.config.network import T5Config, UNetConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.strict_json import ADDED_LATER
from mdm_apple.errors import ConfigError

MAX_SIDE = 8192
LEAST_FPS, MOST_FPS = 0.1, 240.0  # frames a second that files of clips can hold
MAX_PARAMETERS = 20_000_000_000  # network and text encoder together: 80 GB in fp32

ScheduleKind = Literal["cosine", "linear", "deepfloyd", "sigmoid"]
Prediction = Literal["eps", "v"]
LossTarget = Literal["eps", "v", "x0"]
LossWeighting = Literal["plain", "min_snr", "snr_plus_one", "vdm"]
Threshold = Literal["none", "clip", "dynamic", "dynamic_if"]
Padding = Literal["max_tokens", "longest"]
NullPrompt = Literal["end", "space"]


@dataclass(frozen=True)
class ScheduleConfig:
    """The alpha_bar table and how it moves with the scale of a level."""

    kind: ScheduleKind = "deepfloyd"
    num_steps: int = 1000
    beta_start: float = 1e-4  # linear only
    beta_end: float = 2e-2  # linear only
    shift_power: float | None = None  # SNR of a level is divided by scale**power; None: no shift

    def __post_init__(self) -> None:
        in_range("schedule.num_steps", self.num_steps, 2, 100_000)
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
    mixed_ratio: tuple[float, ...] | None = None  # shares of a batch; see `mixed_fractions`
    high_noise_share: float = 0.0  # share of t drawn from the top of the table
    high_noise_start: float = 0.85  # where that top begins, as a fraction of the table
    rescale_signal: float | None = None  # plain UNet: x0 is divided by it
    output_scale: float = 0.0  # plain UNet: out = s tanh(out / s); 0 for none
    threshold: Threshold = "clip"

    def __post_init__(self) -> None:
        in_range("diffusion.high_noise_share", self.high_noise_share, 0, 1)
        in_range("diffusion.high_noise_start", self.high_noise_start, 0, 1, below=True)
        in_range("diffusion.rescale_signal", self.rescale_signal, 0, above=True)
        for name in ("level_weights", "mixed_ratio"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) < 0 or sum(values) <= 0):
                raise ConfigError(
                    f"diffusion.{name}: expected one weight of 0 or more per level, got {values}."
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
class TextConfig:
    """How a caption becomes features; without `encoder` they must come from elsewhere.

    padding: how much padding an unmasked network attends to. max_tokens: all of it, up to that
    number of tokens. longest: up to the longest caption of the same picture, its prompt or its
    negative prompt, as Apple's programs pad. null_prompt: tokens of the empty caption. end: the end
    token alone. space: a space and the end token, as in Apple's programs.
    """

    max_tokens: int
    encoder: T5Config | None = None
    lowercase: bool = False
    trainable: bool = False  # the encoder is trained with the denoiser and lies in the folder
    source: str | None = None  # repository of a frozen encoder, e.g. google/flan-t5-xl
    revision: str | None = None
    encoder_sha256: str | None = None
    tokenizer_sha256: str | None = None
    padding: Padding = field(default="max_tokens", metadata=ADDED_LATER)
    null_prompt: NullPrompt = field(default="end", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        shortest = 2 if self.null_prompt == "space" else 1  # the null prompt must fit
        in_range("text.max_tokens", self.max_tokens, shortest, 4096)
        if self.trainable and self.encoder is None:
            raise ConfigError("text.trainable: true needs text.encoder, the encoder to train.")


@dataclass(frozen=True)
class VideoConfig:
    """A model's clips. frames: the square that the levels of time make. fps: frames a second.

    key_frame: which frame the levels of pictures make.
    """

    frames: int
    fps: float = 8.0
    key_frame: Literal["first"] = "first"

    def __post_init__(self) -> None:
        in_range("video.frames", self.frames, 2, 4096)
        in_range("video.fps", self.fps, LEAST_FPS, MOST_FPS)


@dataclass(frozen=True)
class Distilled:
    """What a student learned; its network has `model.student`.

    starts: table indices that it can jump from, noisiest first: one for a single step, K for up to
    K steps. guidance: smallest and largest weight in training; None: it takes no guidance.
    """

    starts: tuple[int, ...]
    guidance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise((*self.starts, 0)))
        if not self.starts or not falling:
            raise ConfigError(
                f"distilled.starts: expected decreasing table indices above 0, got {self.starts}."
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
    """Where weights and data come from; copied from folder to manifest to report."""

    license: str | None = None
    source: str | None = None
    base_model: str | None = None
    notes: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The contents of a model folder's `config.json`.

    white_headroom: pure white was trained as 1 + this; see `Draws`. 0 as well for models from
    before it was noted.
    """

    model: UNetConfig
    side: int  # pixels of level 0
    diffusion: DiffusionConfig = DiffusionConfig()
    text: TextConfig | None = None
    provenance: Provenance = Provenance()
    mixed_training: bool = False  # whether inner levels were trained without the ones above
    distilled: Distilled | None = None  # None: a model that denoises step by step
    format: int = 1
    video: VideoConfig | None = field(default=None, metadata=ADDED_LATER)  # None: see `frames`
    white_headroom: float = field(default=0.0, metadata=ADDED_LATER)

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
        in_range("white_headroom", self.white_headroom, 0, 1, below=True)
        if self.video is not None and self.video.frames != self.frames:
            raise ConfigError(
                f"video.frames: expected {self.frames}, which the levels of time make, got "
                f"{self.video.frames}."
            )
        _check_distilled(self)
        _check_parameters(self)

    @property
    def shares_padding(self) -> bool:
        """Whether the network must be told how far the padding of a picture's captions goes.

        Networks that mask padding see none of it.
        """
        masked = self.model.innermost.masked_cross_attention
        return self.text is not None and self.text.padding == "longest" and not masked

    @property
    def frames(self) -> int:
        """Frames of a clip, tiled row by row in the square of level 0; 1 for pictures.

        Published configurations of videos have no `video`.
        """
        return self.model.frame_grid**2

    @property
    def fps(self) -> float:
        """Frames a second of the model's clips; published configurations of videos mean 4."""
        return 4.0 if self.video is None else self.video.fps

    @property
    def clip_shapes(self) -> tuple[tuple[int, int], ...]:
        """Frames, and pixels of a frame's side, per level: ((16, 32), (16, 16), (1, 16))."""
        grids = [level.frame_grid for level in self.model.levels]
        return tuple((n * n, side // n) for n, side in zip(grids, self.sides, strict=True))

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of each level, highest first: (1024, 256, 64)."""
        scales = self.model.scales
        return tuple(self.side * s // scales[0] for s in scales)


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
    """Refuse models too large for any machine, before anything is allocated."""
    from mdm_apple.config.shapes import encoder_shapes, parameter_count

    count = parameter_count(config.model)
    if config.text and config.text.encoder:
        count += sum(math.prod(shape) for shape in encoder_shapes(config.text.encoder).values())
    if count > MAX_PARAMETERS:
        raise ConfigError(
            f"model, text.encoder: expected at most {MAX_PARAMETERS // 10**9} billion parameters, "
            f"got {count / 1e9:.1f} billion; choose fewer or narrower stages and layers."
        )
