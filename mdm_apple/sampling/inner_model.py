"""Which levels of a model to run, and an inner level as a model of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mdm_apple.config.model import DiffusionConfig, ModelConfig, VideoConfig
from mdm_apple.errors import ConfigError


@dataclass(frozen=True)
class AskedLevel:
    """A level as a person names it: 32 for pictures, 16x32 for clips of 16 frames of 32 px."""

    frames: int | None
    side: int

    @classmethod
    def of(cls, text: str) -> AskedLevel | None:
        """None for what is neither SIDE nor FRAMESxSIDE."""
        found = re.fullmatch(r"(?:([1-9][0-9]{0,5})[xX])?([1-9][0-9]{0,5})", text.strip())
        if found is None:
            return None
        return cls(None if found[1] is None else int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return str(self.side) if self.frames is None else f"{self.frames}x{self.side}"


Level = int | str | AskedLevel  # as a caller of Python names it: 32, "16x32"


def side_of_level(config: ModelConfig, asked: Level | None) -> int | None:
    """The side of a level as `level_side` has it; None if none is asked for."""
    return None if asked is None else level_side(config, asked)


def picture_sides(config: ModelConfig, first_level: int = 0) -> list[int]:
    """The sides of the levels from this one down that make a single picture, highest first."""
    shapes = zip(config.clip_shapes[first_level:], config.sides[first_level:], strict=True)
    return [side for (frames, _), side in shapes if frames == 1]


def level_side(config: ModelConfig, level: Level) -> int:
    """The side of a level, of its canvas for clips, as SampleSettings take it. Raises ConfigError.

    A side alone is not enough for clips: 16 could mean 16 frames of 16 px, or their key frame.
    """
    asked = level if isinstance(level, AskedLevel) else AskedLevel.of(str(level))
    if asked is None:
        raise ConfigError(
            f"stop-at: expected a side, such as 64, or frames x side, such as 16x32; got {level!r}."
        )
    if config.frames == 1 and asked.frames is not None:
        known = ", ".join(map(str, config.sides))
        raise ConfigError(
            f"stop-at: this model makes pictures, so give a side alone: {known}; got {asked}."
        )
    if config.frames == 1:
        level_of_side(config, asked.side)
        return asked.side
    shape = (asked.frames, asked.side)
    if shape not in config.clip_shapes:
        raise ConfigError(
            f"stop-at: this model makes clips, so give {level_names(config)} (frames x side); "
            f"got {asked}."
        )
    return config.sides[config.clip_shapes.index(shape)]


def require_clip(config: ModelConfig, stop_at: int | None, asked: Mapping[str, object]) -> None:
    """Refuse what was asked, by name, where a single picture is made. Raises ConfigError."""
    frames, side = config.clip_shapes[level_of_side(config, stop_at)]
    if frames > 1:
        return
    for name, value in asked.items():
        if value is not None:
            why = "this model makes pictures" if config.frames == 1 else f"1x{side} is a picture"
            raise ConfigError(f"{name}: belongs to clips, but {why}; leave it out.")


def level_names(config: ModelConfig) -> str:
    """The levels of a model of clips in words: 16x32, 16x16 or 1x16."""
    *others, last = levels_of(config)
    return f"{', '.join(others)} or {last}"


def levels_of(config: ModelConfig) -> list[str]:
    """The levels as a person names them, highest first: 64, 32 and 16, or 16x32 and so on."""
    if config.frames == 1:
        return [str(side) for side in config.sides]
    return [f"{frames}x{side}" for frames, side in config.clip_shapes]


def level_of_side(config: ModelConfig, side: int | None) -> int:
    """Index of the highest level to run; None runs them all. For clips, the side of a canvas."""
    if side is None:
        return 0
    if side not in config.sides:
        known = ", ".join(map(str, config.sides))
        if config.frames > 1:
            known = f"{known} of canvases ({level_names(config)}, frames x side)"
        raise ConfigError(f"stop-at: this model has sides {known}, got {side}.")
    return config.sides.index(side)


def inner_model(config: ModelConfig, side: int) -> ModelConfig:
    """The levels up to `side` as a model to train by itself and to grow around later.

    The levels keep the noise and the shares of a batch that they have within the whole model.
    """
    first = level_of_side(config, side)
    if first == 0:
        return config
    model = config.model.levels[first]
    return dataclasses.replace(
        config,
        model=model,
        side=side,
        diffusion=_inner_diffusion(config.diffusion, first),
        mixed_training=config.mixed_training and model.inner is not None,
        video=_inner_video(config.video, model.frame_grid**2),
    )


def _inner_video(video: VideoConfig | None, frames: int) -> VideoConfig | None:
    if video is None or frames == 1:  # a level of one frame makes pictures
        return None
    return dataclasses.replace(video, frames=frames)


def _inner_diffusion(diffusion: DiffusionConfig, first: int) -> DiffusionConfig:
    weights, ratio = diffusion.level_weights, diffusion.mixed_ratio
    if ratio is not None:  # the levels inside a dropped one saw its rows too
        ratio = (sum(ratio[: first + 1]), *ratio[first + 1 :])
        ratio = ratio if len(ratio) > 1 else None
    return dataclasses.replace(
        diffusion, level_weights=weights and weights[first:], mixed_ratio=ratio
    )
