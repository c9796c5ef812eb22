"""What can be said of a scene: its factors, and the values of each.

All lengths of this package are in 64ths of a picture's side: pixels, in a picture of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

CANVAS = 64
SMALLEST = 20  # the longer side of an object
GAP = 4  # between objects

NUMBERS = (1, 2, 3, 4)
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (176, 176, 176),
    "pink": (255, 190, 222),
    "yellow": (255, 244, 150),
    "green": (178, 232, 170),
    "blue": (160, 206, 255),
    "purple": (206, 184, 250),
    "orange": (255, 212, 158),
}
COLORS = {"red": 356, "orange": 28, "yellow": 52, "green": 115, "blue": 215, "purple": 280}
"""The six colours of objects, as hues in degrees."""
SIZES = ("small", "large")
LARGE_FROM = 25  # the longer side of the smallest object that counts as large
PLACES = ("center", "top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Stated:
    """What a caption says; None: it leaves that to chance.

    thing: the noun of an object, in the singular. number: how many of it; a caption about "a cat"
    says 1. color: of all of them. place: of one alone. relation: how `thing` lies to `other`, "left
    of" for a thing that is on the left.
    """

    thing: str
    number: int | None = None
    background: str | None = None
    color: str | None = None
    size: str | None = None
    place: str | None = None
    relation: str | None = None
    other: str | None = None


@dataclass(frozen=True)
class Placed:
    """An object of a scene: its noun, its colour (None: its own) and the square it fits into."""

    noun: str
    color: str | None
    left: int
    top: int
    size: int

    @property
    def center(self) -> tuple[float, float]:
        return self.left + self.size / 2, self.top + self.size / 2


@dataclass(frozen=True)
class Scene:
    """Everything about one picture, and what its caption says."""

    background: str
    placed: tuple[Placed, ...]
    place: str | None  # of a lone object
    stated: Stated
    caption: str
