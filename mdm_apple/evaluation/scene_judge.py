"""Does a picture show what its caption says? Answered without anything that was learned.

The median of the border is the background. Connected shapes that differ from it are the objects:
their number, their sizes, their places and how two of them lie to each other. Each shape is cut
out and compared with all 128 drawings on that background; it is the nearest one. Where the caption
states a colour, the comparison is blind to hue, and the colour is that of most coloured pixels.

Input: pictures of 64 px in [-1, 1], and what was said. Output: for each factor whether it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.config.types import Images
from mdm_apple.data.scenes.components import Component, components
from mdm_apple.data.scenes.drawings import Drawings, hue_of, nearest_color
from mdm_apple.data.scenes.factors import (
    BACKGROUNDS,
    CANVAS,
    COLORS,
    LARGE_FROM,
    PLACES,
    Stated,
)
from mdm_apple.data.scenes.objects import drawing_paths, objects
from mdm_apple.data.scenes.shapes import CLEAR, colorless, foreground, grown, on_square
from mdm_apple.errors import MdmError

SMALLEST_AREA = 40  # pixels of a grown shape; anything smaller is dirt, not an object
OFF_CENTER = 6  # pixels from the middle, up to which a place is the center
COLORED_FROM = 70  # chroma of a pixel whose hue counts
NOISES = 3.9  # standard deviations of the border that a pixel of an object is away from it
TEMPLATE_SIDE = 40  # of drawings, before they are reduced to compare

Numbers = NDArray[np.int64]


def judge(pictures: Images, stated: Sequence[Stated]) -> list[dict[str, bool]]:
    """For each picture the factors that were stated, and whether the picture has them.

    "thing" is always among them: every shape is that object, or with a relation, one of two shapes
    is, and the other is the other. An object that is not there also misses its relation.

    Args:
        pictures: (N, 3, 64, 64) in [-1, 1]. stated: what was said, one per picture.
    """
    if pictures.shape[1:] != (3, CANVAS, CANVAS):
        raise MdmError(
            f"pictures: expected (N, 3, {CANVAS}, {CANVAS}), got {pictures.shape}; scenes are "
            f"judged at {CANVAS} px."
        )
    if len(pictures) != len(stated):
        raise MdmError(f"stated: expected one per picture, {len(pictures)}, got {len(stated)}.")
    levels = np.clip(np.rint((pictures.astype(np.float64) + 1) * 127.5), 0, 255)
    pixels = levels.transpose(0, 2, 3, 1).astype(np.int64)
    return [_judged(_look(one), said) for one, said in zip(pixels, stated, strict=True)]


@dataclass(frozen=True)
class _Seen:
    """A picture (64, 64, 3), its background by name and as it is, and its shapes."""

    pixels: Numbers
    background: str
    color: Numbers
    mask: NDArray[np.bool_]
    shapes: list[Component]


def _look(pixels: Numbers) -> _Seen:
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    color = np.median(border, axis=0).astype(np.int64)
    name = min(BACKGROUNDS, key=lambda n: int(((color - np.array(BACKGROUNDS[n])) ** 2).sum()))
    # the median of absolute deviations of a normal distribution, as its standard deviation
    noise = 1.4826 * float(np.median(np.abs(border - color)))
    mask = _without_dust(foreground(pixels, color, max(CLEAR, NOISES * noise)))
    found = components(grown(mask))
    return _Seen(pixels, name, color, mask, [s for s in found if s.area >= SMALLEST_AREA])


def _without_dust(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask without pixels that have fewer than two neighbours in it."""
    padded = np.pad(mask, 1).astype(np.int8)
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return mask & (across[:-2] + across[1:-1] + across[2:] >= 3)


def _judged(seen: _Seen, stated: Stated) -> dict[str, bool]:
    blind = stated.color is not None
    things = [_nearest(seen, shape, blind) for shape in seen.shapes]
    found: dict[str, bool] = {}
    if stated.relation is not None:
        found["thing"] = sorted(things) == sorted((stated.thing, stated.other or ""))
        found["relation"] = found["thing"] and _lies(seen, things, stated)
        return found
    found["thing"] = bool(things) and set(things) == {stated.thing}
    if stated.number is not None:
        found["number"] = len(things) == stated.number
    if stated.background is not None:
        found["background"] = seen.background == stated.background
    if stated.color is not None:
        colors = [_color(seen, shape) for shape in seen.shapes]
        found["color"] = bool(colors) and set(colors) == {stated.color}
    if stated.size is not None:
        sizes = {"large" if _longer(s) >= LARGE_FROM else "small" for s in seen.shapes}
        found["size"] = sizes == {stated.size}
    if stated.place is not None:
        found["place"] = len(things) == 1 and _place(seen.shapes[0]) == stated.place
    return found


def _nearest(seen: _Seen, shape: Component, blind: bool) -> str:
    """The noun of the drawing that a shape looks most like."""
    left, top, right, bottom = _inner(shape)
    cut = Image.fromarray(seen.pixels[top:bottom, left:right].astype(np.uint8))
    square = on_square(cut, tuple(seen.color.tolist()))
    nouns, drawn, squares = _templates(seen.background, blind)
    row = (colorless(square) if blind else square).reshape(-1).astype(np.float32)
    return nouns[int((squares - 2 * (drawn @ row)).argmin())]


def _inner(shape: Component) -> tuple[int, int, int, int]:
    """The box of a shape before it was grown."""
    return (
        shape.left + (shape.left > 0),
        shape.top + (shape.top > 0),
        shape.right - (shape.right < CANVAS),
        shape.bottom - (shape.bottom < CANVAS),
    )


@cache
def _templates(
    background: str, blind: bool
) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    """All drawings on a background as rows, their nouns, and their sums of squares.

    Each is there as it is and blurred. Without hue, an object that can change its colour is there
    in its own and in any of the six.
    """
    drawings = _drawings()
    nouns: list[str] = []
    rows: list[Numbers] = []
    for thing in objects():
        for color in (None, "red") if blind and thing.color is not None else (None,):
            drawing = drawings.sized(thing.one, color, TEMPLATE_SIDE)
            sharp = on_square(drawing, BACKGROUNDS[background])
            for square in (sharp, _blurred(sharp)):
                rows.append((colorless(square) if blind else square).reshape(-1))
                nouns.append(thing.one)
    drawn = np.stack(rows).astype(np.float32)
    return nouns, drawn, (drawn**2).sum(axis=1)


def _blurred(square: Numbers) -> Numbers:
    """Each pixel with its neighbours, weighed 1 2 1 along both sides."""
    padded = np.pad(square, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (across[:-2] + 2 * across[1:-1] + across[2:]) // 16


@cache
def _drawings() -> Drawings:
    return Drawings(drawing_paths())


def _color(seen: _Seen, shape: Component) -> str:
    """The colour of most of the coloured pixels of a shape; empty if there are none."""
    left, top, right, bottom = _inner(shape)
    here = seen.pixels[top:bottom, left:right][seen.mask[top:bottom, left:right]]
    colored = here[here.max(axis=-1) - here.min(axis=-1) >= COLORED_FROM]
    if not len(colored):
        return ""
    votes = np.bincount(nearest_color(hue_of(colored)), minlength=len(COLORS))
    return list(COLORS)[int(votes.argmax())]


def _longer(shape: Component) -> int:
    left, top, right, bottom = _inner(shape)
    return max(right - left, bottom - top)


def _place(shape: Component) -> str:
    x, y = (n - CANVAS / 2 for n in shape.center)
    if max(abs(x), abs(y)) <= OFF_CENTER:
        return PLACES[0]
    return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def _lies(seen: _Seen, things: Sequence[str], stated: Stated) -> bool:
    """Whether the two shapes lie as was said: along the axis on which they are further apart."""
    one = seen.shapes[things.index(stated.thing)].center
    other = seen.shapes[things.index(stated.other or "")].center
    x, y = one[0] - other[0], one[1] - other[1]
    if abs(x) >= abs(y):
        return stated.relation == ("left of" if x < 0 else "right of")
    return stated.relation == ("above" if y < 0 else "below")
