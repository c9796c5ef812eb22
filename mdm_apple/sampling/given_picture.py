"""A given picture: what it fixes at every level, and where sampling starts from it.

Three uses: a start from a noisy picture (`strength`), pixels that stay (`free`), and a small
picture that is enlarged (`pixels` smaller than the highest level).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Images, Pixels
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.pixel_range import training_range
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.errors import ConfigError
from mdm_apple.sampling.constraint import Averages, Held, Known, rings_around
from mdm_apple.sampling.inner_model import level_of_side, picture_sides

MOST_HARMONIZING = 20
RING_SHARE, MOST_RINGS = 8, 32  # what is known reaches an eighth of a side into what is made anew


def refuse_clips(config: ModelConfig, level: int) -> None:
    """Refuse a picture for a level of clips. Raises ConfigError."""
    if config.clip_shapes[level][0] > 1:
        raise ConfigError(
            "image: belongs to models of pictures, and this one makes clips; give it as "
            "--first-frame."
        )


@dataclass(frozen=True)
class GivenPicture:
    """A picture to start from or to keep.

    pixels: (S, S, 3), S the side of the highest level that runs, or of a lower one, which is then
    enlarged. free: (S, S), true where the picture is made anew; None: nothing is kept. strength:
    the share of the steps that are taken, from the noisy picture on; 0 is the picture itself, 1
    begins with noise alone. harmonize: how often each step is repeated to fit the kept pixels.
    source: SHA-256 of the picture before it was moved; extend: how; both for the recipe.
    """

    pixels: Pixels
    free: NDArray[np.bool_] | None = None
    strength: float = 1.0
    harmonize: int = 0
    source: str | None = None
    extend: str | None = None

    def __post_init__(self) -> None:
        in_range("strength", self.strength, 0, 1)
        in_range("harmonize", self.harmonize, 0, MOST_HARMONIZING)
        if self.harmonize and self.free is None:
            raise ConfigError(
                "harmonize: fits what is made anew to what is kept; give --mask or --extend, or "
                "leave it out."
            )

    @property
    def side(self) -> int:
        """Pixels of a side."""
        return self.pixels.shape[0]

    @property
    def sha256(self) -> str:
        """How a recipe names it: the hash of the picture's bytes."""
        return self.source or hashlib.sha256(self.pixels.tobytes()).hexdigest()

    @property
    def mask_sha256(self) -> str | None:
        """The hash of the mask; None for none, and where the margins of `extend` say all."""
        if self.free is None or self.extend is not None:
            return None
        return hashlib.sha256(self.free.astype(np.uint8).tobytes()).hexdigest()

    def check(self, config: ModelConfig, stop_at: int | None) -> None:
        """Refuse a picture that does not fit the model. Raises ConfigError."""
        first = level_of_side(config, stop_at)
        refuse_clips(config, first)
        sides = picture_sides(config, first)
        if (self.pixels.shape, self.pixels.dtype) != ((self.side, self.side, 3), np.uint8):
            raise ConfigError(
                f"image: expected bytes of shape (S, S, 3), got {self.pixels.dtype} of "
                f"{self.pixels.shape}."
            )
        if self.side not in sides:
            raise ConfigError(
                f"image: {self.side} px is none of {', '.join(map(str, sorted(sides)))}."
            )
        if self.free is not None and self.free.shape != (sides[0], sides[0]):
            raise ConfigError(
                f"mask: expected the shape {(sides[0], sides[0])}, got {self.free.shape}."
            )
        if self.side < sides[0] and (self.free is not None or self.strength < 1):
            raise ConfigError("image: a picture to enlarge takes neither a mask nor a strength.")

    def levels(self, config: ModelConfig, first_level: int) -> list[Known]:
        """What is known of each level, highest first; empty where nothing is."""
        networks = config.model.levels[first_level:]
        sides = config.sides[first_level:]
        if self.side == sides[0] and self.free is None:
            return []
        free = np.zeros((1, 1, self.side, self.side), np.float32)
        if self.free is not None:
            free = self.free.astype(np.float32)[None, None]
        pixels = self._images(config.white_headroom)
        start, ops = sides.index(self.side), NumpyOps()
        masks = build_pyramid(free, networks[start], ops)
        values = build_pyramid(pixels * (1 - free), networks[start], ops)
        held = [_held(mask, known) for mask, known in zip(masks, values, strict=True)]
        averages = np.clip(pixels, -1, 1)
        above: list[Known] = [
            Averages(averages, pixels - averages, side // self.side) for side in sides[:start]
        ]
        return [*above, *held]

    def beginning(self, config: ModelConfig, first_level: int) -> list[Images] | None:
        """The picture at every level, to start from; None where sampling begins with noise."""
        if self.strength >= 1:
            return None
        pixels = self._images(config.white_headroom)
        return build_pyramid(pixels, config.model.levels[first_level], NumpyOps())

    def _images(self, white_headroom: float) -> Images:
        pixels = training_range(self.pixels.astype(np.float32), -1, white_headroom)
        # of its own memory: averages of a view would add up in another order than Swift's
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _held(free: Images, known: Images) -> Held:
    fixed = (free == 0).astype(np.float32)
    width = min(MOST_RINGS, max(1, free.shape[-1] // RING_SHARE))
    return Held(free, known, fixed, rings=rings_around(fixed, width))


def repeated(levels: Sequence[Images], rows: int) -> list[Images]:
    """One picture at every level as a batch of `rows`."""
    return [np.repeat(level, rows, axis=0) for level in levels]
