"""The images of all levels, computed from the highest."""

from __future__ import annotations

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.types import Array
from mdm_apple.diffusion.ops import Ops


def build_pyramid(x0: Array, config: UNetConfig, ops: Ops) -> list[Array]:
    """Clean images per level, highest first: average-pooled, or with fewer frames for video."""
    images = [x0]
    for level in config.levels[:-1]:
        images.append(level_below(images[-1], level, ops))
    return images


def level_below(x: Array, level: UNetConfig, ops: Ops) -> Array:
    """From a level's clean images those of the level inside it."""
    if level.resamples_frames:
        return ops.pick_frames(x, level.frame_grid, level.ratio**2)
    return ops.avg_pool(x, level.ratio)
