"""What training never sees, so that it can be tested: fixed by hashes of names.

Each object misses one number from 2 to 4, one background, one colour and one place. No scene of
training shows them, stated or not. A quarter of the ordered pairs of objects misses each relation.
Number one is never missed, because without it an object would have no place, and white never is,
because the drawings by name are on white. An object never misses the colour that its own is
nearest to, nor a number or colour that an emoji shows under its own name: "blue heart".
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

# Emoji show these by name, so they cannot be held out.
NAMED_COLORS = {"heart": frozenset(COLORS), "apple": frozenset({"red", "green"})}
NAMED_NUMBERS = {"heart": frozenset({2})}


@dataclass(frozen=True)
class Missed:
    """What an object misses. color: None if there is none that it could miss."""

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
    found: dict[str, Missed] = {}
    for thing in objects():
        noun = thing.one
        named, shown = NAMED_NUMBERS.get(noun, frozenset()), NAMED_COLORS.get(noun, frozenset())
        colors = [c for c in COLORS if thing.color and c != thing.color and c not in shown]
        found[noun] = Missed(
            number=_pick([n for n in NUMBERS[1:] if n not in named], "number", noun),
            background=_pick(backgrounds, "background", noun),
            color=_pick(colors, "color", noun) if colors else None,
            place=_pick(PLACES, "place", noun),
        )
    return found


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
