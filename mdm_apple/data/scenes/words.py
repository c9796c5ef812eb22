"""Other words for an emoji than its name: aliases and keywords, from words.tsv.gz.

A tenth of the words is never trained. Which ones a hash decides, so the list may grow without a
word changing sides. Names of emoji and nouns of objects are not among them.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from mdm_apple.data.scenes.held_out import hashed
from mdm_apple.data.scenes.objects import objects

WORDS = "words.tsv.gz"
MOST_CHARACTERS = 40
NEVER = 10  # one word of so many is never trained


@cache
def other_words() -> dict[tuple[int, ...], tuple[str, ...]]:
    """The words of each emoji, in lower case, by its code points."""
    text = gzip.decompress(Path(__file__).with_name(WORDS).read_bytes()).decode()
    return {
        tuple(int(code, 16) for code in codes.split("-")): tuple(words.split("|"))
        for codes, words in (line.split("\t") for line in text.splitlines())
    }


def is_trained(word: str) -> bool:
    """Whether training uses a word."""
    return word in _nouns() or hashed("word", word) % NEVER != 0


@cache
def _nouns() -> frozenset[str]:
    return frozenset(noun for thing in objects() for noun in (thing.one, thing.many))
