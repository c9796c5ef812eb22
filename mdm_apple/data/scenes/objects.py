"""The 128 objects of scenes: objects.tsv, which `choose_objects` chose by its rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mdm_apple.data.twemoji import named_drawings

HEADER = "one\tmany\temoji\tcolor\trelated"


@dataclass(frozen=True)
class Object:
    """An object of scenes.

    one, many: its noun in the singular and in the plural. emoji: the English name of its drawing.
    color: the one of the six that its own is nearest to, or None if it cannot change its colour.
    related: whether it is one of the 32 that take part in relations.
    """

    one: str
    many: str
    emoji: str
    color: str | None
    related: bool

    @property
    def row(self) -> str:
        """Its line in objects.tsv."""
        return "\t".join(
            (self.one, self.many, self.emoji, self.color or "-", "yes" if self.related else "no")
        )


@cache
def objects() -> tuple[Object, ...]:
    """All 128, in code point order of their emoji."""
    lines = Path(__file__).with_name("objects.tsv").read_text(encoding="utf-8").splitlines()
    fields = [line.split("\t") for line in lines[1:]]
    return tuple(
        Object(one, many, emoji, None if color == "-" else color, related == "yes")
        for one, many, emoji, color, related in fields
    )


@cache
def by_noun() -> dict[str, Object]:
    """The objects by their noun in the singular."""
    return {thing.one: thing for thing in objects()}


def drawing_paths() -> dict[str, Path]:
    """The SVG file of each object, by its noun in the singular."""
    paths = {drawing.name: drawing.path for drawing in named_drawings()}
    return {thing.one: paths[thing.emoji] for thing in objects()}
