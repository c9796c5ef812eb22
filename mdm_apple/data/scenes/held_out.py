"""What training never sees, so that it can be tested: fixed by hashes of names.

Each object misses one number from 2 to 4, one background, one colour and one place. No scene of
training shows them, stated or not. A quarter of the ordered pairs of objects misses each relation.
Number one is never missed, because without it an object would have no place, and white never is,
because the drawings by name are on white. An object never misses the colour that its own is
nearest to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from mdm_apple.data.scenes.factors import (
    BACKGROUNDS,
    COLORS,
    NUMBERS,
    OPPOSITE,
    PLACES,
    RELATIONS,
    Placed,
)
from mdm_apple.data.scenes.objects import objects

Value = TypeVar("Value")


@dataclass(frozen=True)
class Missed:
    """What an object misses. color: None if it cannot change its colour."""

    number: int
    background: str
    color: str | None
    place: str


def hashed(*names: str) -> int:
    """A number that these names always give."""
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:8], "big")


@cache
def missed() -> dict[str, Missed]:
    """What each object misses, by its noun."""
    backgrounds = [name for name in BACKGROUNDS if name != "white"]
    return {
        thing.one: Missed(
            number=_pick(NUMBERS[1:], "number", thing.one),
            background=_pick(backgrounds, "background", thing.one),
            color=_pick([c for c in COLORS if c != thing.color], "color", thing.one)
            if thing.color
            else None,
            place=_pick(PLACES, "place", thing.one),
        )
        for thing in objects()
    }


@cache
def missed_pairs() -> dict[str, frozenset[tuple[str, str]]]:
    """For each relation the ordered pairs (one, other) that never have it.

    "A left of B" is the same picture as "B right of A", so both are missed or neither is.
    """
    nouns = [thing.one for thing in objects() if thing.related]
    pairs = [(one, other) for one in nouns for other in nouns if one != other]
    found: dict[str, frozenset[tuple[str, str]]] = {}
    for relation in ("left of", "above"):
        ranked = sorted(pairs, key=lambda pair: hashed(relation, *pair))
        found[relation] = frozenset(ranked[: len(pairs) // 4])
        found[OPPOSITE[relation]] = frozenset((b, a) for a, b in found[relation])
    return {relation: found[relation] for relation in RELATIONS}


def is_held_out(
    background: str, placed: Sequence[Placed], place: str | None, relation: str | None
) -> bool:
    """Whether a picture shows something that training never sees.

    Args:
        place: of a lone object. relation: of the first object to the second, if they have one.
    """
    misses = [missed()[thing.noun] for thing in placed]
    if any(m.background == background for m in misses):
        return True
    if relation is not None:
        return (placed[0].noun, placed[1].noun) in missed_pairs()[relation]
    first, color = misses[0], placed[0].color
    if color is not None and color == first.color:
        return True
    return first.number == len(placed) or (place is not None and first.place == place)


def _pick(among: Sequence[Value], factor: str, noun: str) -> Value:
    return among[hashed(factor, noun) % len(among)]
