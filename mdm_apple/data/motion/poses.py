"""The ten motions: where a drawing is in each frame of a clip, how large and how far turned.

Speeds are fixed. What differs between the clips of one caption is the phase of a motion that
repeats, and an offset across its direction.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZE = 0.55  # of the drawing, where it keeps its size
SMALL, LARGE = 0.35, 0.75
REACH = 0.22  # from the center to where a move starts and ends
ASIDE = 0.14  # the largest offset
PIVOT = 0.3  # of a swing, above the center
SWING = 38  # degrees to either side
DIGITS = 9  # of sines, which differ in their last digits between machines


@dataclass(frozen=True)
class Pose:
    """A drawing in one frame.

    x, y: its center, right of and below the frame's center, in sides of the frame. size: of its
    square, likewise. angle: degrees clockwise.
    """

    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Variant:
    """phase: 0 to 1, of motions that repeat. aside, along: offsets in sides of the frame."""

    phase: float
    aside: float
    along: float


def variant_of(caption: str, number: int) -> Variant:
    """The variant of a clip; a function of its caption and number alone."""
    draw = np.random.RandomState([zlib.crc32(caption.encode()), number])
    phase, aside, along = draw.uniform(-1, 1, 3).round(DIGITS).tolist()
    return Variant((phase + 1) / 2, ASIDE * aside, ASIDE * along)


def pose(motion: str, moment: float, variant: Variant) -> Pose:
    """The pose at a moment of the clip, from 0 at its first frame to 1 at its last."""
    return MOTIONS[motion](moment, variant)


def _sine(turns: float) -> float:
    return round(math.sin(2 * math.pi * turns), DIGITS)


def _moving(right: int, down: int) -> Callable[[float, Variant], Pose]:
    def at(moment: float, variant: Variant) -> Pose:
        way = REACH * (2 * moment - 1)
        across = (variant.aside * abs(down), variant.aside * abs(right))
        return Pose(right * way + across[0], down * way + across[1], SIZE, 0)

    return at


def _spinning(clockwise: int) -> Callable[[float, Variant], Pose]:
    """A little less than one turn, so that the last frame is not the first."""

    def at(moment: float, variant: Variant) -> Pose:
        angle = 360 * (variant.phase + clockwise * moment * 15 / 16)
        return Pose(variant.aside / 2, variant.along / 2, SIZE, angle)

    return at


def _scaling(first: float, last: float) -> Callable[[float, Variant], Pose]:
    def at(moment: float, variant: Variant) -> Pose:
        size = first + (last - first) * moment
        return Pose(variant.aside / 2, variant.along / 2, size, 0)

    return at


def _bouncing(moment: float, variant: Variant) -> Pose:
    height = abs(_sine(moment + variant.phase / 2))
    return Pose(variant.aside, REACH * (1 - 2 * height), SIZE, 0)


def _swinging(moment: float, variant: Variant) -> Pose:
    """Like a bell: clockwise turns move it to the left."""
    angle = SWING * _sine(moment * 15 / 16 + variant.phase)
    turned = angle / 360
    x, y = -PIVOT * _sine(turned), PIVOT * (_sine(turned + 0.25) - 1)
    return Pose(x + variant.aside / 2, y, SIZE, angle)


MOTIONS: dict[str, Callable[[float, Variant], Pose]] = {
    "moving right": _moving(1, 0),
    "moving left": _moving(-1, 0),
    "moving up": _moving(0, -1),
    "moving down": _moving(0, 1),
    "spinning clockwise": _spinning(1),
    "spinning counterclockwise": _spinning(-1),
    "growing": _scaling(SMALL, LARGE),
    "shrinking": _scaling(LARGE, SMALL),
    "bouncing": _bouncing,
    "swinging": _swinging,
}
