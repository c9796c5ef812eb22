"""Make mdm_apple/evaluation/scene_captions.tsv: the captions that models of scenes are tested with.

    python -m benchmarks.scene_captions

Each row of the test is a question. What it asks is chosen by hashes of names, so that no choice is
anybody's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.factors import BACKGROUNDS, COLORS, NUMBERS, PLACES, SIZES, Stated
from mdm_apple.data.scenes.held_out import hashed, missed, missed_pairs
from mdm_apple.data.scenes.objects import objects
from mdm_apple.data.scenes.wording import caption_of
from mdm_apple.data.scenes.words import is_trained, other_words
from mdm_apple.data.twemoji import named_drawings
from mdm_apple.evaluation.scene_scores import CAPTIONS, HEADER, Asked

OUT = Path(__file__).parents[1] / "mdm_apple" / "evaluation" / CAPTIONS
NAMES, WORDS, PHRASINGS, SCENES, PLACED = 512, 512, 200, 256, 128
PHRASES = ("a picture of {}", "the {} emoji", "{} and {}", "{} with {}")  # no caption of training


def every_caption() -> list[Asked]:
    """All captions, row by row."""
    drawn = {drawing.codes for drawing in named_drawings()}
    words = {word for codes, some in other_words().items() if codes in drawn for word in some}
    trained = [word for word in words if is_trained(word)]
    never = [word for word in words if not is_trained(word)]
    names = [drawing.name for drawing in named_drawings()]
    return [
        *(Asked("names", name, (name,)) for name in _some("names", names, NAMES)),
        *(Asked("words", word, (word,)) for word in _some("words", trained, WORDS)),
        *_phrasings(trained),
        *(Asked("never trained", word, (word,)) for word in _some("never", never, len(never))),
        *_scenes("together, seen", _together(held_out=False), SCENES),
        *_scenes("together, held out", _together(held_out=True), SCENES),
        *_scenes("color, seen", _colors(held_out=False), SCENES),
        *_scenes("color, held out", _colors(held_out=True), SCENES),
        *_scenes("relation, seen", _relations(held_out=False), SCENES),
        *_scenes("relation, held out", _relations(held_out=True), SCENES),
        *_scenes("place, seen", _places(held_out=False), PLACED),
        *_scenes("place, held out", _places(held_out=True), PLACED),
    ]


def _phrasings(trained: Sequence[str]) -> Iterator[Asked]:
    """Trained words in phrases that no caption of training has; some join two words of an emoji."""
    pairs = {
        pair
        for some in other_words().values()
        for pair in itertools.combinations(filter(is_trained, some), 2)
        if not set(pair[0].split()) & set(pair[1].split())
    }
    singles = iter(_some("phrasings", trained, PHRASINGS))
    doubles = iter(sorted(pairs, key=lambda pair: hashed("phrasings", *pair)))
    for number in range(PHRASINGS):
        phrase = PHRASES[number % len(PHRASES)]
        words = next(doubles) if phrase.count("{}") == 2 else (next(singles),)
        yield Asked("phrasings", phrase.format(*words), words)


def _together(held_out: bool) -> Iterator[Stated]:
    """Object, background and number. Held out: the number in one half, the background in the other.

    The other of the two is one that training shows with this object.
    """
    for thing in objects():
        misses = missed()[thing.one]
        numbers = [n for n in NUMBERS if n != misses.number]
        backgrounds = [name for name in BACKGROUNDS if name != misses.background]
        for half in range(2):
            number = numbers[(hashed("together", thing.one) + half) % len(numbers)]
            background = backgrounds[hashed("behind", thing.one, str(half)) % len(backgrounds)]
            if held_out and half == 0:
                number = misses.number
            elif held_out:
                background = misses.background
            yield Stated(thing.one, number=number, background=background)


def _colors(held_out: bool) -> Iterator[Stated]:
    """Object and colour: alone, or with a background, a size or a number."""
    for thing in objects():
        misses = missed()[thing.one]
        if misses.color is None:
            continue
        seen = [color for color in COLORS if color != misses.color]
        backgrounds = [name for name in BACKGROUNDS if name != misses.background]
        numbers = [n for n in NUMBERS[1:] if n != misses.number]
        for kind in range(4):
            chosen = hashed("color", thing.one, str(kind))
            color = misses.color if held_out else seen[chosen % len(seen)]
            plain = Stated(thing.one, number=1, color=color)
            yield (
                plain,
                replace(plain, background=backgrounds[chosen % len(backgrounds)]),
                replace(plain, size=SIZES[chosen % len(SIZES)]),
                replace(plain, number=numbers[chosen % len(numbers)]),
            )[kind]


def _relations(held_out: bool) -> Iterator[Stated]:
    nouns = [thing.one for thing in objects() if thing.related]
    for relation, never in missed_pairs().items():
        for one, other in itertools.permutations(nouns, 2):
            if ((one, other) in never) == held_out:
                yield Stated(one, number=1, relation=relation, other=other)


def _places(held_out: bool) -> Iterator[Stated]:
    for thing in objects():
        never = missed()[thing.one].place
        seen = [place for place in PLACES if place != never]
        place = never if held_out else seen[hashed("at", thing.one) % len(seen)]
        yield Stated(thing.one, number=1, place=place)


def _scenes(row: str, stated: Iterable[Stated], count: int) -> Iterator[Asked]:
    lines = {Asked(row, "", (), one).line: one for one in stated}
    for line in _some(row, list(lines), count):
        stream = np.random.Generator(np.random.Philox(key=[hashed(line), 0]))
        yield Asked(row, caption_of(lines[line], Dice(stream)), (), lines[line])


def _some(row: str, among: Sequence[str], count: int) -> list[str]:
    """`count` of these, by their hashes."""
    return sorted(among, key=lambda one: hashed(row, one))[:count]


def main() -> None:
    """Write the file."""
    text = "".join(f"{line}\n" for line in (HEADER, *(asked.line for asked in every_caption())))
    OUT.write_text(text, encoding="utf-8")
    print(f"{OUT}: {text.count(chr(10)) - 1} captions, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
