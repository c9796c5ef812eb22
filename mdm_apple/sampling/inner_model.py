"""Which levels of a model to run, and an inner level as a model of its own."""

from __future__ import annotations

import dataclasses

from mdm_apple.config.model import DiffusionConfig, ModelConfig, VideoConfig
from mdm_apple.errors import ConfigError


def level_of_side(config: ModelConfig, side: int | None) -> int:
    """Index of the highest level to run, for --stop-at; None runs them all."""
    if side is None:
        return 0
    if side not in config.sides:
        known = ", ".join(map(str, config.sides))
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
    if video is None or frames == 1:
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
