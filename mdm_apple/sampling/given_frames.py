"""Frames of a clip that are given: what they fix at every level of the nest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Images, Pixels
from mdm_apple.diffusion.canvas import tiled
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.pixel_range import training_range
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.constraint import Held, Known
from mdm_apple.sampling.inner_model import level_of_side, require_clip


@dataclass(frozen=True)
class GivenFrames:
    """What the first and the last frame of a clip are to be; None: the model makes it.

    Each is (S, S, 3), S the side of a frame at the highest level that runs.
    """

    first: Pixels | None = None
    last: Pixels | None = None

    def __bool__(self) -> bool:
        return self.first is not None or self.last is not None

    def check(self, config: ModelConfig, stop_at: int | None) -> None:
        """Refuse frames that do not fit the clips of a model. Raises ConfigError."""
        asked = {"first-frame": self.first, "last-frame": self.last}
        require_clip(config, stop_at, asked)
        _, side = config.clip_shapes[level_of_side(config, stop_at)]
        shape = side, side, 3
        for name, picture in asked.items():
            if picture is not None and (picture.shape, picture.dtype) != (shape, np.uint8):
                raise ConfigError(
                    f"{name}: expected bytes of shape {shape}, got {picture.dtype} of "
                    f"{picture.shape}."
                )

    def levels(self, config: ModelConfig, first_level: int) -> list[Known]:
        """What is known of each level, highest first; empty where nothing is.

        Only the clean estimates are held: the frames of a clip follow them from step to step.
        """
        if not self:
            return []
        return [Held(*pair) for pair in given_at_levels(config, self, first_level)]


NOTHING_GIVEN = GivenFrames()


def given_at_levels(
    config: ModelConfig, given: GivenFrames, first_level: int
) -> list[tuple[Images, Images]]:
    """Per level: 1 where a pixel is free and 0 where it is given, and the given pixels, else 0.

    All are (1, 3, side, side); pixels lie in [-1, 1], and white where training had it. A level
    with fewer frames holds the first one, but not the last.
    """
    frames, side = config.clip_shapes[first_level]
    free = np.ones((frames, side, side, 3), np.float32)
    known = np.zeros((frames, side, side, 3), np.float32)
    for place, picture in ((0, given.first), (-1, given.last)):
        if picture is not None:
            free[place] = 0
            pixels = picture.astype(np.float32)
            known[place] = training_range(pixels, -1, config.white_headroom)
    network = config.model.levels[first_level]
    masks = build_pyramid(_canvas(free), network, NumpyOps())
    values = build_pyramid(_canvas(known), network, NumpyOps())
    return list(zip(masks, values, strict=True))


def sha256_of(frame: Pixels | None) -> str | None:
    """How a recipe names a given frame: the hash of its bytes."""
    return None if frame is None else hashlib.sha256(frame.tobytes()).hexdigest()


def _canvas(frames: Images) -> Images:
    return tiled(frames).transpose(2, 0, 1)[None]
