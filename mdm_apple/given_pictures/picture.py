"""A picture from outside to start from, to keep a part of, or to enlarge: files or Pillow's images.

It is seen as the model sees its pictures: the centre square, at the side of a level.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Pixels
from mdm_apple.data.read_picture import (
    centre_square,
    picture_size,
    read_layers,
    shown,
    upright_layers,
)
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.given_pictures.margins import Margins
from mdm_apple.sampling.given_picture import MOST_HARMONIZING, GivenPicture, refuse_clips
from mdm_apple.sampling.inner_model import level_of_side, picture_sides

InPicture = str | Path | Image.Image
MAX_SIDE = 4096
WHITE = 128  # of 255: from here on a mask is white
STRENGTH = 0.6  # where nothing of the picture is kept exactly


class PictureWords(TypedDict, total=False):
    """Fields of PictureAsked as keywords of a call."""

    image: InPicture | None
    strength: float | None
    mask: InPicture | None
    extend: Margins | str | None
    harmonize: int | None
    background: str | None


@dataclass(frozen=True)
class PictureAsked:
    """What a caller says of a picture; None: not said.

    image: the picture. strength: 0 keeps it, 1 forgets it; default 0.6, or 1 with mask or extend.
    mask: of the picture's own size; what is white in it is made anew. extend: pixels of the canvas
    that are made anew around the picture. harmonize: how often steps are repeated to fit the rest.
    background: a color behind what is transparent.
    """

    image: InPicture | None = None
    strength: float | None = None
    mask: InPicture | None = None
    extend: Margins | str | None = None
    harmonize: int | None = None
    background: str | None = None

    def check(self) -> None:
        """Refuse what does not fit together, before anything is read. Raises MdmError."""
        in_range("strength", self.strength, 0, 1)
        in_range("harmonize", self.harmonize, 0, MOST_HARMONIZING)
        for name in ("strength", "mask", "extend", "harmonize", "background"):
            if getattr(self, name) is not None and self.image is None:
                raise MdmError(f"{name}: belongs to a picture; give --image.")
        if self.mask is not None and self.extend is not None:
            raise MdmError("extend: says what is made anew, and so does the mask; give one.")
        if self.background is not None:
            _color(self.background)

    def given(self, config: ModelConfig, stop_at: int | None) -> GivenPicture | None:
        """The picture in the size of the highest level that runs; None if it has no effect.

        Raises MdmError.
        """
        self.check()
        if self.image is None:
            return None
        highest = level_of_side(config, stop_at)
        refuse_clips(config, highest)
        side = config.sides[highest]
        layers = _layers("image", self.image)
        pixels = _square("image", layers, side, self.background)
        free, source, extend = None, None, None
        if self.mask is not None:
            free = _free_pixels(_layers("mask", self.mask), layers.size, side)
        if self.extend is not None:
            margins = self.extend if isinstance(self.extend, Margins) else Margins.of(self.extend)
            source, extend = hashlib.sha256(pixels.tobytes()).hexdigest(), str(margins)
            pixels, free = margins.around(pixels)
        strength = self.strength
        if strength is None:
            strength = STRENGTH if free is None else 1.0
        if strength == 1 and free is None:
            return None
        return GivenPicture(pixels, free, strength, self.harmonize or 0, source, extend)


def small_picture(
    config: ModelConfig,
    to: int | None,
    image: InPicture,
    *,
    resize: bool = False,
    background: str | None = None,
) -> GivenPicture:
    """A picture to enlarge; its side names the level.

    Args:
        to: the side of the highest level that runs; None for the model's.
        resize: reduce a picture of another size to the largest level below `to` that it fills.

    Raises MdmError.
    """
    highest = level_of_side(config, to)
    levels = sorted(picture_sides(config))
    if config.clip_shapes[highest][0] > 1:
        raise ConfigError("upscale: enlarges pictures, and this model makes clips.")
    target = config.sides[highest]
    layers = _layers("upscale", image)
    side = min(layers.size)
    lower = [level for level in levels if level < target]
    if resize and layers.size not in [(level, level) for level in lower]:
        fitting = [level for level in lower if level <= side]
        if not fitting:
            raise ConfigError(f"upscale: {_size(layers)} is less than {_names(levels)}.")
        return GivenPicture(_square("upscale", layers, fitting[-1], background))
    if layers.width != layers.height or side not in levels:
        raise ConfigError(
            f"upscale: {_size(layers)} is none of {_names(levels)}; give --resize to reduce it to "
            "one."
        )
    if side not in lower:
        raise ConfigError(
            f"upscale: {side} px is what --to {target} makes already; give a smaller picture."
        )
    return GivenPicture(_square("upscale", layers, side, background))


def _size(image: Image.Image) -> str:
    if image.width == image.height:
        return f"{image.width} px"
    return f"{image.width}x{image.height} px"


def _names(levels: list[int]) -> str:
    return ", ".join(map(str, levels))


def _layers(name: str, picture: InPicture) -> Image.Image:
    """A picture with its transparency. Raises MdmError for one that is none, or too large."""
    if isinstance(picture, Image.Image):
        _check_size(name, name, *picture.size)
        return upright_layers(picture)
    path = Path(picture)
    if not path.is_file():
        raise MdmError(f"{shown(path)}: no such file.")
    _check_size(name, shown(path), *picture_size(path))
    return read_layers(path)


def _check_size(name: str, called: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise MdmError(
            f"{name}: {called} has {width}x{height} pixels, expected up to {MAX_SIDE} a side; make "
            "a smaller copy."
        )


def _square(name: str, layers: Image.Image, side: int, background: str | None) -> Pixels:
    """The centre square, on a background where it is transparent. Raises MdmError without one."""
    profile = layers.info.get("icc_profile")
    if layers.mode == "RGBA":
        if background is None:
            raise MdmError(
                f"{name}: is transparent in places; say what is behind it with --background, such "
                "as white."
            )
        behind = Image.new("RGBA", layers.size, (*_color(background), 255))
        layers = Image.alpha_composite(behind, layers).convert("RGB")
        if profile is not None:
            layers.info["icc_profile"] = profile
    return centre_square(layers, side)


def _free_pixels(mask: Image.Image, size: tuple[int, int], side: int) -> NDArray[np.bool_]:
    """Where a mask is white: (side, side). A pixel is made anew where any part of it is."""
    if mask.size != size:
        raise MdmError(
            f"mask: has {mask.width}x{mask.height} pixels, and the picture {size[0]}x{size[1]}; "
            "give a mask of the same size."
        )
    if mask.mode == "RGBA":
        mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask)
    white = Image.fromarray((np.asarray(mask.convert("L")) >= WHITE).astype(np.float32))
    shorter = min(mask.size)
    left, top = (mask.width - shorter) / 2, (mask.height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    free = np.asarray(white.resize((side, side), Image.Resampling.BOX, box=box)) > 1e-4
    if not free.any():
        raise MdmError("mask: has no white in it, so nothing would be made anew; paint some white.")
    return free


def _color(name: str) -> tuple[int, int, int]:
    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except ValueError:
        raise MdmError(
            f"background: {name!r} is no color; expected one such as white or #ffcc00."
        ) from None
    return red, green, blue
