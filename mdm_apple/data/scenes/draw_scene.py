"""Scenes at random: what they show, what is said of it, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.drawings import Drawings
from mdm_apple.data.scenes.factors import (
    BACKGROUNDS,
    CANVAS,
    COLORS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIZES,
    Placed,
    Scene,
    Stated,
)
from mdm_apple.data.scenes.held_out import missed, missed_pairs
from mdm_apple.data.scenes.layouts import alone, beside, several
from mdm_apple.data.scenes.objects import by_noun, objects
from mdm_apple.data.scenes.wording import caption_of

Value = TypeVar("Value")

SMALL, LARGE, LARGE_ALONE = (20, 22), (27, 28), (30, 34, 38)
ALONE, COUNTED = 45, 80  # percent of scenes with one object; of the others, with their number said
SAID_ALONE = {0: 10, 1: 40, 2: 50}  # how much is said besides object and number, by weight
SAID_COUNTED = {0: 25, 1: 75}
SAID_UNCOUNTED = {0: 20, 1: 40, 2: 40}


def draw_scene(noun: str, dice: Dice) -> Scene:
    """A scene of training with one to four of this object: nothing that it misses.

    Besides the object, at most two things are said, where "a cat" does not count as a number.
    """
    thing, misses = by_noun()[noun], missed()[noun]
    backgrounds = [name for name in BACKGROUNDS if name != misses.background]
    number = 1 if dice.chance(ALONE) else dice.pick(_without(NUMBERS[1:], misses.number))
    colors = [name for name in COLORS if name != misses.color] if thing.color else []
    choices = ["background", "background", "size"] + ["color", "color"] * bool(colors)
    said: set[str] = set()
    if number == 1:
        choices += ["place"]
        count = dice.weighed(SAID_ALONE)
    elif dice.chance(COUNTED):
        said.add("number")
        count = dice.weighed(SAID_COUNTED)
    else:
        count = dice.weighed(SAID_UNCOUNTED)
    said |= {dice.pick(choices) for _ in range(count)}
    stated = Stated(
        thing=noun,
        number=number if number == 1 or "number" in said else None,
        background=dice.pick(backgrounds) if "background" in said else None,
        color=dice.pick(colors) if "color" in said else None,
        size=dice.pick(SIZES) if "size" in said else None,
        place=dice.pick(_without(PLACES, misses.place)) if "place" in said else None,
    )
    return show(stated, dice, number=number)


def draw_related(noun: str, dice: Dice) -> Scene:
    """A scene of training with this object and another, in a relation that they do not miss."""
    relation = dice.pick(RELATIONS)
    never = missed_pairs()[relation]
    others = [
        thing.one
        for thing in objects()
        if thing.related and thing.one != noun and (noun, thing.one) not in never
    ]
    stated = Stated(noun, number=1, relation=relation, other=dice.pick(others))
    return show(stated, dice)


def show(stated: Stated, dice: Dice, *, number: int | None = None) -> Scene:
    """A scene of which this is true; the rest is drawn from what training sees.

    Args:
        number: of objects, if `stated` leaves it open; drawn by default.
    """
    if stated.relation is not None and stated.other is not None:
        return _beside(stated, stated.relation, stated.other, dice)
    misses = missed()[stated.thing]
    backgrounds = [name for name in BACKGROUNDS if name != misses.background]
    background = stated.background or dice.pick(backgrounds)
    count = stated.number or number or dice.pick(_without(NUMBERS[1:], misses.number))
    large = (stated.size or dice.pick(SIZES)) == "large"
    size = dice.pick(SMALL if not large else LARGE if count > 1 else LARGE_ALONE)
    place = None
    if count == 1:
        place = stated.place or dice.pick(_without(PLACES, misses.place))
        corners = [alone(place, size, dice)]
    else:
        corners = several(count, size, dice)
    placed = tuple(Placed(stated.thing, stated.color, x, y, size) for x, y in corners)
    return Scene(background, placed, place, stated, caption_of(stated, dice))


def picture_of(scene: Scene, side: int, drawings: Drawings) -> Pixels:
    """The picture of a scene: uint8 (side, side, 3). Below 64 px, drawn at 64 and averaged."""
    full = max(side, CANVAS)
    canvas = Image.new("RGB", (full, full), BACKGROUNDS[scene.background])
    for thing in scene.placed:
        left, top, right, bottom = (
            (n * full + CANVAS // 2) // CANVAS
            for n in (thing.left, thing.top, thing.left + thing.size, thing.top + thing.size)
        )
        drawing = drawings.sized(thing.noun, thing.color, min(right - left, bottom - top))
        corner = ((left + right - drawing.width) // 2, (top + bottom - drawing.height) // 2)
        canvas.paste(drawing, corner, drawing)
    if side < full:
        canvas = canvas.resize((side, side), Image.Resampling.BOX)
    return np.array(canvas)


def _beside(stated: Stated, relation: str, other: str, dice: Dice) -> Scene:
    nouns = (stated.thing, other)
    never = {missed()[noun].background for noun in nouns}
    background = dice.pick([name for name in BACKGROUNDS if name not in never])
    sizes = [dice.pick((*SMALL, *LARGE)) for _ in nouns]
    corners = beside(relation, sizes, dice)
    placed = tuple(
        Placed(noun, None, x, y, size)
        for noun, (x, y), size in zip(nouns, corners, sizes, strict=True)
    )
    return Scene(background, placed, None, stated, caption_of(stated, dice))


def _without(values: Sequence[Value], unwanted: object) -> list[Value]:
    return [value for value in values if value != unwanted]
