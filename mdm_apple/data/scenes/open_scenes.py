"""`--data scenes`: emoji by name and by other words, and scenes that are drawn anew for each row.

Two rows of five show one drawing, centred on white: one under its name, one under another word.
Three of five are scenes. An index says which object a scene is about; the row's own random numbers
say the rest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import Dataset, Item, hash_fields
from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.draw_scene import draw_related, draw_scene, picture_of
from mdm_apple.data.scenes.drawings import Drawings
from mdm_apple.data.scenes.factors import Scene
from mdm_apple.data.scenes.objects import drawing_paths, objects
from mdm_apple.data.scenes.words import WORDS, is_trained, other_words
from mdm_apple.data.twemoji import named_drawings, open_twemoji

RULES = 1  # goes up when the same index and numbers give another scene
RELATED_EVERY = 4  # one scene of so many is a relation
JOINED = 25  # percent of rows by another word that name a second word of the same emoji
_FIXED = 0x5CE9E5  # seed of the scenes that stand for their index


def open_scenes(side: int) -> Dataset:
    """Emoji by name, by other words, and in scenes.

    Its captions, and its pictures by index alone, are examples: `Dataset.drawn` draws others.

    Args:
        side: pixels; also the `scale` of every picture.
    """
    source = SceneRows(side)
    tables = [Path(__file__).with_name(name).read_bytes().hex() for name in ("objects.tsv", WORDS)]
    fingerprint = hash_fields(["scenes", RULES, side, source.emoji.fingerprint, *tables])
    return Dataset(side, source.captions(), source.example, fingerprint, draw=source.draw)


class SceneRows:
    """The rows, by index: names, then other words, then scenes."""

    def __init__(self, side: int) -> None:
        """side: pixels of the pictures."""
        self._side = side
        self.emoji = open_twemoji(side)
        self._drawings = Drawings(drawing_paths())
        self._names = self.emoji.captions()
        words = other_words()
        self._words = [
            tuple(filter(is_trained, words.get(drawing.codes, ()))) for drawing in named_drawings()
        ]
        pairs = [(emoji, word) for emoji, some in enumerate(self._words) for word in some]
        # each name as often as is needed for as many rows as there are other words
        repeats = -(-len(pairs) // len(self._names))
        self._pairs = [(emoji, "") for emoji in range(len(self._names))] * repeats + pairs
        self._nouns = [thing.one for thing in objects()]
        self._related = [thing.one for thing in objects() if thing.related]
        self.scenes = range(len(self._pairs), len(self._pairs) * 5 // 2)

    def captions(self) -> list[str]:
        """An example of each index."""
        plain = [word or self._names[emoji] for emoji, word in self._pairs]
        return plain + [self._example(index).caption for index in self.scenes]

    def example(self, index: int) -> tuple[Pixels, float]:
        """The picture of the example of an index, and its scale."""
        if index < len(self._pairs):
            return self.emoji.item(self._pairs[index][0]).image, float(self._side)
        return picture_of(self._example(index), self._side, self._drawings), float(self._side)

    def draw(self, index: int, random: np.random.Generator) -> Item:
        """What a row with these random numbers sees at an index."""
        dice = Dice(random)
        if index >= len(self._pairs):
            scene = self.scene(index, dice)
            image = picture_of(scene, self._side, self._drawings)
            image.flags.writeable = False
            return Item(image, scene.caption, float(self._side))
        emoji, word = self._pairs[index]
        image = self.emoji.item(emoji).image
        return Item(image, self._called(emoji, word, dice), float(self._side))

    def scene(self, index: int, dice: Dice) -> Scene:
        """A scene at one of the indices in `scenes`."""
        turn, kind = divmod(index - len(self._pairs), RELATED_EVERY)
        if kind == 0:
            return draw_related(self._related[turn % len(self._related)], dice)
        place = turn * (RELATED_EVERY - 1) + kind - 1
        return draw_scene(self._nouns[place % len(self._nouns)], dice)

    def _called(self, emoji: int, word: str, dice: Dice) -> str:
        """The caption of a drawing: its name, a word, or two words."""
        if not word:
            return self._names[emoji]
        others = [other for other in self._words[emoji] if other != word]
        if not others or not dice.chance(JOINED):
            return word
        joined = f"{word}{dice.pick((' ', ', '))}{dice.pick(others)}"
        return joined if is_trained(joined) else word  # two words may make one that is not trained

    def _example(self, index: int) -> Scene:
        numbers = np.random.Generator(np.random.Philox(key=[_FIXED, index]))
        return self.scene(index, Dice(numbers))
