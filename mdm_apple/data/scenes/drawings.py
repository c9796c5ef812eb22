"""Drawings of objects: trimmed, in a colour, at a size. Integers only, so every machine agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.data.scenes.factors import COLORS
from mdm_apple.data.twemoji import rendered

MASTER = 160  # pixels at which a drawing is rendered, recoloured and then reduced
TURN = 1536  # units of a full turn of the hue; 256 for each of its six stretches
REACH = 25 * TURN // 360  # how far a hue may be from the main one, to count as the same
COLORED = 60  # least difference of the largest and the smallest of R, G, B in a coloured pixel
SHARE = 60  # percent of the area that an object with one hue has in it
BRIGHTNESS, SATURATION = 230, 190  # means of a recoloured area, of 255

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Hue:
    """The main hue of a drawing, in units of TURN, and the percentage of the area that has it."""

    hue: int
    share: int
    brightness: int

    @property
    def nearest(self) -> str:
        """The colour that is nearest to it."""
        return min(COLORS, key=lambda name: abs(_apart(self.hue, _units(name))))

    @property
    def can_change(self) -> bool:
        """Whether the object may be given another colour; a dark orange would be brown."""
        return self.share >= SHARE and self.brightness >= 140


class Drawings:
    """The drawings of some nouns; each is rendered once and kept at every size that was asked for.

    Args:
        paths: SVG files by noun.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._masters: dict[tuple[str, str | None], Image.Image] = {}
        self._sized: dict[tuple[str, str | None, int], Image.Image] = {}

    def sized(self, noun: str, color: str | None, size: int) -> Image.Image:
        """The drawing as RGBA without a border; its longer side has `size` pixels."""
        key = (noun, color, size)
        # Two threads may fill one place: both write the same picture.
        if key not in self._sized:
            master = self.whole(noun, color)
            longer = max(master.size)
            width, height = (max(1, (n * size + longer // 2) // longer) for n in master.size)
            self._sized[key] = master.resize((width, height), Image.Resampling.BOX)
        return self._sized[key]

    def whole(self, noun: str, color: str | None) -> Image.Image:
        """The drawing as RGBA without a border, from a rendering of MASTER pixels."""
        key = (noun, color)
        if key not in self._masters:
            whole = trimmed(rendered(self._paths[noun], MASTER))
            self._masters[key] = whole if color is None else recolored(whole, color)
        return self._masters[key]


def trimmed(drawing: Image.Image) -> Image.Image:
    """A drawing without its transparent border."""
    solid = np.asarray(drawing)[..., 3] >= 64
    return drawing.crop(Image.fromarray(solid).getbbox())


def main_hue(drawing: Image.Image) -> Hue:
    """The hue that most of a drawing's area has."""
    pixels = np.asarray(drawing).astype(np.int64)
    hue, value, chroma = _parts(pixels)
    alpha = pixels[..., 3]
    colored = np.where(chroma >= COLORED, alpha, 0)
    mass = np.bincount(hue.ravel(), weights=colored.ravel(), minlength=TURN).astype(np.int64)
    around = np.concatenate([mass[-REACH:], mass, mass[:REACH]])
    sums = np.concatenate([[0], np.cumsum(around)])
    near = sums[2 * REACH + 1 :] - sums[: -2 * REACH - 1]
    best = int(np.median(np.flatnonzero(near == near.max())))
    there = (np.abs(_apart(hue, best)) <= REACH) & (colored > 0)
    brightness = int(value[there].mean()) if there.any() else 0
    return Hue(best, int(100 * near.max() // max(1, alpha.sum())), brightness)


def recolored(drawing: Image.Image, color: str) -> Image.Image:
    """The drawing with the area of its main hue in another; light and shade stay."""
    pixels = np.asarray(drawing).astype(np.int64)
    hue, value, chroma = _parts(pixels)
    main = main_hue(drawing).hue
    area = (np.abs(_apart(hue, main)) <= REACH) & (chroma >= COLORED) & (pixels[..., 3] > 0)
    v, c = value[area], chroma[area]
    saturation = c * 255 // np.maximum(v, 1)
    v = np.minimum(v * BRIGHTNESS // max(1, int(v.sum()) // len(v)), 255)
    saturation = saturation * SATURATION // max(1, int(saturation.sum()) // len(saturation))
    c = v * np.minimum(saturation, 255) // 255
    out = pixels.astype(np.uint8)
    out[area, :3] = _rgb(_units(color), v, c)
    return Image.fromarray(out, "RGBA")


def hue_of(pixels: Numbers) -> Numbers:
    """Hue of RGB pixels (..., 3), from 0 to TURN - 1."""
    return _parts(pixels)[0]


def nearest_color(hue: Numbers) -> Numbers:
    """Index of the colour in COLORS that is nearest to each hue."""
    distances = [np.abs(_apart(hue, _units(name))) for name in COLORS]
    return np.argmin(np.stack(distances), axis=0)


def _parts(pixels: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Hue, largest of R, G, B, and its difference to the smallest."""
    r, g, b = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    value = np.maximum(np.maximum(r, g), b)
    chroma = value - np.minimum(np.minimum(r, g), b)
    divisor = np.maximum(chroma, 1)
    hue = np.where(
        value == r,
        256 * (g - b) // divisor,
        np.where(value == g, 512 + 256 * (b - r) // divisor, 1024 + 256 * (r - g) // divisor),
    )
    return hue % TURN, value, chroma


def _rgb(hue: int, value: Numbers, chroma: Numbers) -> NDArray[np.uint8]:
    """RGB (N, 3) of one hue."""
    stretch, within = divmod(hue, 256)
    low, rising = value - chroma, value - chroma + chroma * within // 256
    falling = value - chroma * within // 256
    order = (
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    )[stretch]
    return np.stack(order, axis=-1).astype(np.uint8)


def _units(color: str) -> int:
    return COLORS[color] * TURN // 360


def _apart(hue: Numbers | int, other: int) -> Numbers:
    """Signed distance of hues, on the shorter way around."""
    return (np.asarray(hue) - other + TURN // 2) % TURN - TURN // 2
