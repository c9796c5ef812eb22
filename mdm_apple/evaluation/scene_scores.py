"""What a model of scenes is tested with: captions in rows, what each says, what pictures show.

scene_captions.tsv holds the captions; `benchmarks/scene_captions.py` makes it. Rows of names and of
other words are retrieval among all drawings: a hit is a picture that is nearer to a drawing of what
was asked than to all but four others. Rows of scenes are judged by `scene_judge`.

Input: pictures and the captions they were made from. Output: shares with an interval and chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import Images
from mdm_apple.data.dataset import Dataset
from mdm_apple.data.scenes.factors import Stated
from mdm_apple.data.scenes.words import other_words
from mdm_apple.data.twemoji import named_drawings
from mdm_apple.evaluation.retrieval import open_gallery, pool, ranks_among, retrieval_side
from mdm_apple.evaluation.scene_judge import judge
from mdm_apple.evaluation.share import Share

CAPTIONS = "scene_captions.tsv"
FACTORS = tuple(field.name for field in fields(Stated))
HEADER = "\t".join(("row", "caption", "words", *FACTORS))

Value = TypeVar("Value")
Hits = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Asked:
    """A caption of the test.

    row: the question it belongs to. words: of an emoji, all of which the right one has; a name is
    one word. stated: what it says about a scene, or None.
    """

    row: str
    caption: str
    words: tuple[str, ...] = ()
    stated: Stated | None = None

    @property
    def line(self) -> str:
        """Its line in scene_captions.tsv."""
        said = astuple(self.stated) if self.stated else (None,) * len(FACTORS)
        cells = ["" if value is None else str(value) for value in said]
        return "\t".join((self.row, self.caption, "|".join(self.words), *cells))


@cache
def asked_of() -> dict[str, tuple[Asked, ...]]:
    """The captions of each row."""
    text = Path(__file__).with_name(CAPTIONS).read_text(encoding="utf-8")
    found: dict[str, list[Asked]] = {}
    for line in text.splitlines()[1:]:
        row, caption, words, *said = line.split("\t")
        asked = Asked(row, caption, tuple(filter(None, words.split("|"))), _stated(said))
        found.setdefault(row, []).append(asked)
    return {row: tuple(some) for row, some in found.items()}


def _stated(cells: Sequence[str]) -> Stated | None:
    values: dict[str, str | int | None] = {
        name: int(cell) if name == "number" and cell else cell or None
        for name, cell in zip(FACTORS, cells, strict=True)
    }
    return Stated(**values) if cells[0] else None  # pyright: ignore[reportArgumentType]


def scene_shares(pictures: Images, asked: Sequence[Asked]) -> dict[str, Share]:
    """How many pictures show what was said: "all" of it, and each factor.

    Args:
        pictures: (N, 3, 64, 64) in [-1, 1], made from the captions of `asked`, all of one row.
    """
    stated = [one.stated for one in asked if one.stated is not None]
    return _shares(_judged(pictures, stated), _judged(pictures, _others(stated)))


def word_shares(pictures: Images, asked: Sequence[Asked], emoji: Dataset) -> dict[str, Share]:
    """How many pictures are among the nearest 1 and 5 to a drawing of what was asked.

    Args:
        pictures: (N, 3, side, side) in [-1, 1], made from the captions of `asked`.
        emoji: all drawings by name (`--data twemoji`), at the side of the pictures.
    """
    side = retrieval_side(pictures.shape[-1])
    gallery = open_gallery(emoji, side)
    right = list(right_drawings(asked))
    made = pool(pictures, side)
    return _shares(
        _top(ranks_among(made, gallery, right)), _top(ranks_among(made, gallery, _others(right)))
    )


def right_drawings(asked: Sequence[Asked]) -> NDArray[np.bool_]:
    """Which drawings have all words of a caption, as name or as other words: (N, drawings)."""
    words = other_words()
    known = [{d.name, *words.get(d.codes, ())} for d in named_drawings()]
    return np.array([[some.issuperset(one.words) for some in known] for one in asked])


def _top(ranks: NDArray[np.int64]) -> Hits:
    return {"top1": ranks < 1, "top5": ranks < 5}


def _judged(pictures: Images, stated: Sequence[Stated]) -> Hits:
    found = judge(pictures, stated)
    names = dict.fromkeys(name for one in found for name in one)
    hits = {name: np.array([one[name] for one in found if name in one]) for name in names}
    return {"all": np.array([all(one.values()) for one in found]), **hits}


def _others(values: Sequence[Value]) -> list[Value]:
    """The values in a fixed other order, in which each picture has that of another caption."""
    order = np.random.RandomState(0).permutation(len(values))
    places = np.empty(len(order), np.int64)
    places[order] = np.roll(order, 1)
    return [values[int(place)] for place in places]


def _shares(hits: Mapping[str, NDArray[np.bool_]], by_chance: Hits) -> dict[str, Share]:
    return {
        name: Share(int(some.sum()), len(some), float(by_chance[name].mean()))
        for name, some in hits.items()
    }
