"""How shapes are told from a plain background and from each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHAPE_SIDE = 20  # pixels at which shapes are compared
CLEAR = 48  # distance in RGB from the background, from which on a pixel belongs to an object

Numbers = NDArray[np.int64]


def foreground(
    pixels: Numbers, background: tuple[int, ...] | Numbers, clear: float = CLEAR
) -> NDArray[np.bool_]:
    """Which pixels of (H, W, 3) are at least `clear` away from the background."""
    return ((pixels - np.asarray(background)) ** 2).sum(axis=-1) > clear**2


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask with all neighbours of its pixels, so that gaps of up to 2 px close."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    across = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return (across[:-2] | across[1:-1] | across[2:])[:height, :width]


def colorless(pixels: Numbers) -> Numbers:
    """The largest and the smallest of R, G, B: (..., 2). The same for every hue."""
    return np.stack([pixels.max(axis=-1), pixels.min(axis=-1)], axis=-1)


def on_square(drawing: Image.Image, background: tuple[int, ...]) -> Numbers:
    """A drawing or a picture, centred on a plain square, at the side for comparisons: (S, S, 3)."""
    side = max(drawing.size)
    canvas = Image.new("RGB", (side, side), background)
    corner = ((side - drawing.width) // 2, (side - drawing.height) // 2)
    canvas.paste(drawing, corner, drawing if drawing.mode == "RGBA" else None)
    if side != SHAPE_SIDE:
        canvas = canvas.resize((SHAPE_SIDE, SHAPE_SIDE), Image.Resampling.BOX)
    return np.asarray(canvas).astype(np.int64)
