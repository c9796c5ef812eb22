"""The images of all levels, computed from the highest."""

from __future__ import annotations

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.types import Array
from mdm_apple.diffusion.ops import Ops


def build_pyramid(x0: Array, config: UNetConfig, ops: Ops) -> list[Array]:
    """Clean images per level, highest first: average-pooled, or with fewer frames for video."""
    images, grid = [x0], config.frame_grid
    for level in config.levels[:-1]:
        if level.resamples_frames:
            every = level.ratio**2
            images.append(ops.pick_frames(images[-1], grid, every))
            grid //= level.ratio
        else:
            images.append(ops.avg_pool(images[-1], level.ratio))
    return images
