"""Make mdm_apple/data/scenes/words.tsv.gz: other words for each emoji.

    python -m benchmarks.scene_words CLDR_FOLDER

CLDR_FOLDER is common/ of Unicode CLDR, as in Debian's package unicode-cldr-core, under
/usr/share/unicode/cldr. It gives English names and keywords, and the package emoji gives aliases.
"""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from mdm_apple.data.scenes.words import MOST_CHARACTERS, WORDS
from mdm_apple.data.twemoji import named_drawings
from mdm_apple.errors import require
from mdm_apple.text.captions import clean_caption

OUT = Path(__file__).parents[1] / "mdm_apple" / "data" / "scenes" / WORDS


def table(cldr: Path) -> str:
    """One line per emoji that has other words: its code points, a tab, the words between bars."""
    cldr_words = _cldr_words(cldr)
    known: dict[str, dict[str, list[str]]] = require("emoji").EMOJI_DATA
    aliases = {_plain(emoji): entry.get("alias", []) for emoji, entry in known.items()}
    drawings = named_drawings()
    names = {drawing.name.lower() for drawing in drawings}
    lines: list[str] = []
    for drawing in drawings:
        emoji = _plain("".join(map(chr, drawing.codes)))
        found = [*aliases.get(emoji, []), *cldr_words.get(emoji, [])]
        words = {word: None for word in map(_word, found) if _is_word(word) and word not in names}
        if words:
            codes = "-".join(f"{code:x}" for code in drawing.codes)
            lines.append(f"{codes}\t{'|'.join(words)}\n")
    return "".join(lines)


def _cldr_words(cldr: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        root = ElementTree.parse(cldr / folder / "en.xml").getroot()
        for entry in root.iter("annotation"):
            found.setdefault(entry.attrib["cp"], []).extend((entry.text or "").split("|"))
    return found


def _plain(emoji: str) -> str:
    """Without the selectors of variants, as CLDR writes it."""
    return emoji.replace("\ufe0f", "")


def _word(raw: str) -> str:
    plain = clean_caption(raw.strip().strip(":").replace("_", " ").replace(":", " "))
    return plain.lower()


def _is_word(word: str) -> bool:
    letters = sum(character.isalpha() for character in word)
    # a comma joins two words in training, so no word has one
    return letters >= 2 and len(word) <= MOST_CHARACTERS and not re.search("skin tone|,", word)


def main() -> None:
    """Write the file."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    text = table(Path(sys.argv[1]))
    OUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{OUT}: {len(text.splitlines())} emoji, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
