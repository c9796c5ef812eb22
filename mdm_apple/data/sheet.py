"""Captioned pictures on one sheet, as training sees them."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import Dataset, evenly_spread

PICTURES = 12
COLUMNS = 4
SHOWN = range(192, 513)  # pixels of a side, in which smaller and larger pictures are shown
GAP = 12
LINES, LINE = 3, 16  # of a caption, and the pixels from one to the next
LETTER = 6.6  # pixels of a letter on average


def spread(good: Sequence[int]) -> list[int]:
    """Up to twelve of these pictures, from the first to the last; always the same ones."""
    return [good[k] for k in evenly_spread(len(good), PICTURES)]


def sheet(dataset: Dataset, chosen: Sequence[int]) -> Pixels:
    """Pictures with their captions below, four in a row: (H, W, 3). Raises DataError."""
    factor = -(-SHOWN.start // dataset.side)
    side = min(dataset.side * factor, SHOWN.stop - 1)
    width, height = side + GAP, side + GAP + LINES * LINE
    rows, columns = -(-len(chosen) // COLUMNS), min(COLUMNS, len(chosen))
    canvas = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for place, index in enumerate(chosen):
        item = dataset.item(index)
        left, top = GAP + place % COLUMNS * width, GAP + place // COLUMNS * height
        how = Image.Resampling.NEAREST if dataset.side <= side else Image.Resampling.LANCZOS
        canvas.paste(Image.fromarray(item.image).resize((side, side), how), (left, top))
        text = f"{place + 1}  {_in_font(item.caption)}"
        lines = textwrap.wrap(text, int(side / LETTER), max_lines=LINES, placeholder=" ...")
        for number, line in enumerate(lines):
            draw.text((left, top + side + 2 + number * LINE), line, fill="black", font=font)
    return np.array(canvas)


def _in_font(caption: str) -> str:
    """The font of Pillow has no accents and no other script: these become "e" and "?"."""
    parts = unicodedata.normalize("NFKD", caption)
    plain = "".join(c for c in parts if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()
