"""Captions of scenes: several templates for each thing that can be said."""

from __future__ import annotations

from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.factors import Stated
from mdm_apple.data.scenes.objects import by_noun

WORDS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
ALONE = ("a", "one", "a single")
SEVERAL = ("", "some")
BACKGROUND = (
    "{things} on {a_color} background",
    "{things} on {color}",
    "{things}, {color} background",
    "{a_color} background with {things}",
)
PLACE = {
    "center": ("in the center", "in the middle"),
    **{
        place: (f"in the {place}", f"at the {place}", f"in the {place} corner")
        for place in ("top left", "top right", "bottom left", "bottom right")
    },
}
RELATION = {
    "left of": (
        "{one} left of {other}",
        "{one} to the left of {other}",
        "{one} on the left of {other}",
    ),
    "right of": (
        "{one} right of {other}",
        "{one} to the right of {other}",
        "{one} on the right of {other}",
    ),
    "above": ("{one} above {other}", "{one} over {other}"),
    "below": ("{one} below {other}", "{one} under {other}"),
}


def caption_of(stated: Stated, dice: Dice) -> str:
    """A caption that says exactly this."""
    things = _things(stated, dice)
    if stated.relation is not None and stated.other is not None:
        template = dice.pick(RELATION[stated.relation])
        return template.format(one=things, other=with_article(stated.other))
    if stated.place is not None:
        things = f"{things} {dice.pick(PLACE[stated.place])}"
    if stated.background is None:
        return things
    color = stated.background
    return dice.pick(BACKGROUND).format(things=things, color=color, a_color=with_article(color))


def with_article(words: str) -> str:
    """ "an owl", "a cat"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _things(stated: Stated, dice: Dice) -> str:
    """ "a small red heart", "two cats", "some owls"."""
    noun = by_noun()[stated.thing]
    adjectives = " ".join(filter(None, (stated.size, stated.color)))
    if stated.number != 1:
        words = SEVERAL if stated.number is None else WORDS[stated.number]
        first = words[0] if dice.chance(70) else dice.pick(words)
        return " ".join(filter(None, (first, adjectives, noun.many)))
    words = f"{adjectives} {noun.one}".strip()
    article = ALONE[0] if stated.relation or dice.chance(80) else dice.pick(ALONE)
    return with_article(words) if article == "a" else f"{article} {words}"
