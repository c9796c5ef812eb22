"""The rule that chose the objects of scenes.

nouns.tsv names countable things among the emoji, without letters, flags, clocks, faces and parts of
people, each with a singular and a plural that differ. Of these, an object must, with 20 px on its
longer side,

- be one connected shape, at least 12 px wide and high, that covers at least 110 px,
- be one connected shape on each background, with at least 70 % of its area clearly visible, and
  as wide and high as it is, but for 2 px.

Of those left, one after the other is taken in the order of nouns.tsv if it differs enough from all
that are taken, until there are 128. The list begins with what a child would name. For relations,
32 of these are taken in the same way, with a larger difference. Two drawings differ as much as they
do in colour or without it, whichever is less.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.data.scenes.components import components
from mdm_apple.data.scenes.drawings import Drawings, main_hue
from mdm_apple.data.scenes.factors import BACKGROUNDS, SMALLEST
from mdm_apple.data.scenes.objects import Object
from mdm_apple.data.scenes.shapes import SHAPE_SIDE, colorless, foreground, grown, on_square
from mdm_apple.data.twemoji import named_drawings

COUNT, RELATED = 128, 32
DIFFERENCE, RELATED_DIFFERENCE = 2400, 3600  # mean squares of differences of bytes
LEAST_SIDE, LEAST_AREA, VISIBLE = 12, 110, 70
EXAMPLE = "blue"  # a colour; without colour, all six look the same


def choose_objects() -> tuple[Object, ...]:
    """The objects by the rule above; objects.tsv holds the same."""
    paths = {drawing.name: drawing.path for drawing in named_drawings()}
    order = {name: place for place, name in enumerate(paths)}
    lines = Path(__file__).with_name("nouns.tsv").read_text(encoding="utf-8").splitlines()
    nouns = {name: (one, many) for name, one, many in (line.split("\t") for line in lines[1:])}
    drawings = Drawings({name: paths[name] for name in nouns})
    able = [name for name in nouns if _clear(drawings.sized(name, None, SMALLEST))]
    hues = {name: main_hue(drawings.whole(name, None)) for name in able}
    unlike = _differences(
        [drawings.sized(name, None, SMALLEST) for name in able],
        [
            drawings.sized(name, EXAMPLE if hues[name].can_change else None, SMALLEST)
            for name in able
        ],
    )
    kept = _unlike(unlike, list(range(len(able))), DIFFERENCE, COUNT)
    related = set(_unlike(unlike, kept, RELATED_DIFFERENCE, RELATED))
    chosen = [
        Object(
            *nouns[able[k]],
            emoji=able[k],
            color=hues[able[k]].nearest if hues[able[k]].can_change else None,
            related=k in related,
        )
        for k in kept
    ]
    return tuple(sorted(chosen, key=lambda thing: order[thing.emoji]))


def _clear(drawing: Image.Image) -> bool:
    """Whether a drawing is one shape that stands out on each background."""
    solid = np.asarray(drawing)[..., 3] >= 128
    shapes = components(solid)
    if len(shapes) != 1 or min(drawing.size) < LEAST_SIDE or shapes[0].area < LEAST_AREA:
        return False
    return all(_clear_on(drawing, solid, color) for color in BACKGROUNDS.values())


def _clear_on(drawing: Image.Image, solid: NDArray[np.bool_], color: tuple[int, int, int]) -> bool:
    canvas = Image.new("RGB", (drawing.width + 4, drawing.height + 4), color)
    canvas.paste(drawing, (2, 2), drawing)
    seen = foreground(np.asarray(canvas).astype(np.int64), color)
    shapes = components(grown(seen))
    if len(shapes) != 1:
        return False
    there = int((seen[2:-2, 2:-2] & solid).sum())
    width, height = shapes[0].right - shapes[0].left - 2, shapes[0].bottom - shapes[0].top - 2
    fits = width >= drawing.width - 2 and height >= drawing.height - 2
    return fits and 100 * there >= VISIBLE * int(solid.sum())


def _differences(own: list[Image.Image], plain: list[Image.Image]) -> NDArray[np.int64]:
    """How much each pair differs: the mean square over channels and pixels, the lesser of both."""
    white = BACKGROUNDS["white"]
    colored = np.stack([on_square(drawing, white) for drawing in own])
    without = np.stack([colorless(on_square(drawing, white)) for drawing in plain])
    return np.minimum(_squares(colored), _squares(without))


def _squares(pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = pictures.reshape(len(pictures), -1)
    sums = [((rows - row) ** 2).sum(axis=1) for row in rows]
    return np.stack(sums) // (SHAPE_SIDE**2 * pictures.shape[-1])


def _unlike(unlike: NDArray[np.int64], among: list[int], least: int, count: int) -> list[int]:
    """The first `count` of `among` of which each two differ by at least `least`."""
    taken: list[int] = []
    for one in among:
        if len(taken) < count and all(unlike[one, other] >= least for other in taken):
            taken.append(one)
    return taken
