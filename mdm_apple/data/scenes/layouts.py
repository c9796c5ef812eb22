"""Where the objects of a scene lie: squares that keep the gap and stay inside the picture.

All lengths are in 64ths of the picture's side.
"""

from __future__ import annotations

from collections.abc import Sequence

from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.factors import CANVAS, GAP

MARGIN = 1
CENTER_JITTER, CORNER_JITTER, SIDE_JITTER = 3, 4, 5
Corner = tuple[int, int]  # left, top

# For each number three layouts: objects of each row; whether the rows lie apart, each at another
# end; whether rows are columns instead.
LAYOUTS: dict[int, tuple[tuple[tuple[int, ...], bool, bool], ...]] = {
    2: (((2,), False, False), ((2,), False, True), ((1, 1), True, False)),
    3: (((1, 2), False, False), ((2, 1), False, False), ((1, 2), False, True)),
    4: (((2, 2), False, False), ((2, 2), True, False), ((2, 2), True, True)),
}


def alone(place: str, size: int, dice: Dice) -> Corner:
    """A lone object in the center or in a corner."""
    far = CANVAS - size
    if place == "center":
        middle = far // 2
        return (
            middle + dice.between(-CENTER_JITTER, CENTER_JITTER),
            middle + dice.between(-CENTER_JITTER, CENTER_JITTER),
        )
    vertical, horizontal = place.split()
    inset = [MARGIN + dice.below(CORNER_JITTER + 1) for _ in range(2)]
    left = inset[0] if horizontal == "left" else far - inset[0]
    top = inset[1] if vertical == "top" else far - inset[1]
    return left, top


def several(number: int, size: int, dice: Dice) -> list[Corner]:
    """Two to four objects of one size, in one of the three layouts of their number."""
    rows, apart, turned = dice.pick(LAYOUTS[number])
    free = CANVAS - 2 * MARGIN - _length(len(rows), size)
    top, extra = _split(free, len(rows), dice)
    mirrored = dice.chance(50)
    corners: list[Corner] = []
    for place, count in enumerate(rows):
        room = CANVAS - 2 * MARGIN - _length(count, size)
        if apart:
            near = dice.below(room // 3 + 1)
            left, within = (near if (place % 2 == 0) != mirrored else room - near), 0
        else:
            left, within = _split(room, count, dice)
        for column in range(count):
            along = MARGIN + left + column * (size + GAP + within)
            across = MARGIN + top + place * (size + GAP + extra)
            if len(rows) == 1:  # room to shift each by itself
                shift = dice.between(-SIDE_JITTER, SIDE_JITTER)
                across = min(max(across + shift, MARGIN), CANVAS - MARGIN - size)
            corners.append((across, along) if turned else (along, across))
    return corners


def beside(relation: str, sizes: Sequence[int], dice: Dice) -> list[Corner]:
    """Two objects, the first of which is left of, right of, above or below the second."""
    upright = relation in ("above", "below")
    order = (0, 1) if relation in ("left of", "above") else (1, 0)
    free = CANVAS - 2 * MARGIN - sum(sizes) - GAP
    start, extra = _split(free, 2, dice)
    along = [MARGIN + start, MARGIN + start + sizes[order[0]] + GAP + extra]
    larger = max(sizes)
    middle = MARGIN + larger // 2 + dice.below(CANVAS - 2 * MARGIN - larger + 1)
    corners: list[Corner] = [(0, 0), (0, 0)]
    for turn, which in enumerate(order):
        shifted = middle - sizes[which] // 2 + dice.between(-SIDE_JITTER, SIDE_JITTER)
        across = min(max(shifted, MARGIN), CANVAS - MARGIN - sizes[which])
        corners[which] = (across, along[turn]) if upright else (along[turn], across)
    return corners


def _length(count: int, size: int) -> int:
    return count * size + (count - 1) * GAP


def _split(free: int, count: int, dice: Dice) -> tuple[int, int]:
    """Free room as a start and an extra gap between `count` neighbours."""
    extra = dice.below(free // (2 * (count - 1)) + 1) if count > 1 else 0
    return dice.below(free - extra * (count - 1) + 1), extra
