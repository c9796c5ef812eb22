"""Captions in a file per picture, of the same stem: beside it, or in a folder of captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError
from mdm_apple.data.folder_tree import Tree, folder_of, same_name, stem_of
from mdm_apple.data.listing import unclear
from mdm_apple.data.read_picture import shown
from mdm_apple.text.captions import clean_caption

CAPTION_SUFFIXES = (".txt", ".caption", ".cap")


class _Texts:
    """Caption files by folder and stem: `0.txt`, `0.png.txt` or `0.caption.txt` for `0.png`."""

    def __init__(self, tree: Tree) -> None:
        names = [name for name in tree.files if name.lower().endswith(CAPTION_SUFFIXES)]
        self.folders = list(dict.fromkeys(map(folder_of, names)))
        self._exact: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._alike: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name in names:
            stem = stem_of(name)
            for key in {stem, stem.removesuffix(".caption")}:
                self._exact[folder_of(name), key].append(name)
                self._alike[folder_of(name), same_name(key)].append(name)

    def exactly(self, place: str, picture: str) -> list[str]:
        """The files in a folder that have the name of a picture."""
        return [text for key in _keys(picture) for text in self._exact.get((place, key), [])]

    def alike(self, place: str, picture: str) -> list[str]:
        """Those whose names differ in capitals or the writing of accents, too."""
        keys = map(same_name, _keys(picture))
        return [text for key in keys for text in self._alike.get((place, key), [])]


def _keys(picture: str) -> tuple[str, str]:
    return stem_of(picture), PurePosixPath(picture).name


def caption_files(tree: Tree) -> dict[str, str]:
    """The caption file of each picture that has one. Raises DataError if one has two."""
    texts = _Texts(tree)
    found: dict[str, str] = {}
    respelled: list[tuple[str, str]] = []  # picture, place
    for folder, names in tree.pictures_by_folder.items():
        place = _place_of(tree, folder, names, texts)
        if place is None:
            continue
        for name in names:
            fitting = texts.exactly(place, name)
            if fitting:
                found[name] = _only(tree, fitting)
            else:
                respelled.append((name, place))
    taken = {*found.values()}
    by_text: dict[str, str] = {}
    for name, place in respelled:
        fitting = [text for text in texts.alike(place, name) if text not in taken]
        if not fitting:
            continue
        text = found[name] = _only(tree, fitting)
        first = by_text.setdefault(text, name)
        if stem_of(first) != stem_of(name):
            raise unclear(tree, f"{text} for {first}", f"for {name}")
    users: dict[str, str] = {}
    for name, text in found.items():
        first = users.setdefault(text, name)
        if folder_of(first) != folder_of(name):
            raise unclear(tree, f"{text} for {first}", f"for {name}")
    return {name: found[name] for name in tree.pictures if name in found}


def _only(tree: Tree, fitting: Sequence[str]) -> str:
    """The caption file of a picture. Raises DataError for two that differ."""
    if len(fitting) > 1 and len({read_caption(tree, text) for text in fitting}) > 1:
        raise unclear(tree, fitting[0], fitting[1])
    return fitting[0]


def _place_of(tree: Tree, folder: str, pictures: Sequence[str], texts: _Texts) -> str | None:
    """The folder that holds the captions of a folder's pictures: itself, or one like it."""

    def fits(place: str) -> bool:
        return any(texts.alike(place, picture) for picture in pictures)

    if fits(folder):
        return folder
    others = [f for f in texts.folders if f != folder and _alike(folder, f) and fits(f)]
    # captions that lie beside pictures belong to those
    taken = tree.pictures_by_folder
    others = [f for f in others if f not in taken] or others
    if len(others) > 1:
        raise unclear(tree, f"the captions in {others[0]}", f"those in {others[1]}")
    return others[0] if others and others[0] not in taken else None


def _alike(one: str, other: str) -> bool:
    """Whether two folders differ in one name, as `images/cats` and `captions/cats`, or in none."""
    a, b = PurePosixPath(one).parts, PurePosixPath(other).parts
    if len(a) == len(b):
        return sum(x != y for x, y in zip(a, b, strict=True)) == 1
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return len(longer) == len(shorter) + 1 and longer[: len(shorter)] == shorter


def read_caption(tree: Tree, name: str) -> str:
    """The caption in a file of a tree, cleaned; raises DataError."""
    path = tree.path(name, name)
    with path.open("rb") as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise DataError(f"{shown(path)}: expected a caption of at most 64 KiB.")
    try:
        return clean_caption(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)}: expected UTF-8 text; save it as UTF-8.") from None
