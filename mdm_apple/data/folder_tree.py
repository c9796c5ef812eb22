"""The files below a folder from outside: what is there, and what each path really is.

Nothing is opened. Names that start with a dot and the files of operating systems are left out.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from mdm_apple.data.dataset import DataError
from mdm_apple.data.kinds import PICTURES, Kind
from mdm_apple.data.read_picture import shown
from mdm_apple.storage.files import is_system_file

MAX_DEPTH = 8  # folders below the first


@dataclass
class Tree:
    """The files below a folder, as paths relative to it with forward slashes, sorted.

    outside: links to folders that lie elsewhere, which are not followed.
    deep: folders that lie too deep, which are not looked into.
    kind: what its pictures are, which may be clips.
    """

    root: Path
    files: dict[str, None]  # for its fast `in`
    outside: list[str]
    deep: list[str]
    kind: Kind = PICTURES

    @cached_property
    def pictures(self) -> list[str]:
        return [name for name in self.files if self.kind.has(name)]

    @cached_property
    def pictures_by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.pictures:
            found.setdefault(folder_of(name), []).append(name)
        return found

    def path(self, name: str, where: str) -> Path:
        """The real path of a file, links resolved. Raises DataError unless it lies in the folder.

        where: begins the sentence that refuses it.
        """
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise DataError(
                f"{shown(where)}: leads out of the folder; copy the {self.kind.one} into "
                f"{shown(self.root)}."
            )
        if not path.is_file():
            raise DataError(f"{shown(where)}: no such file in {shown(self.root)}.")
        return path


def scan(root: Path, kind: Kind = PICTURES) -> Tree:
    """List a folder of pictures or clips. Raises OSError for a folder that cannot be listed."""
    tree = Tree(root, {}, [], [], kind)
    tree.files = dict.fromkeys(sorted(_files(root, "", tree, {root}, 0)))
    tree.outside.sort()
    tree.deep.sort()
    return tree


def _files(folder: Path, prefix: str, tree: Tree, above: set[Path], depth: int) -> Iterator[str]:
    """Paths below a folder. Anything that is no folder (a pipe, a dead link) counts as a file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or is_system_file(entry.name):
                continue
            name = prefix + entry.name
            if not entry.is_dir():
                yield name
                continue
            real = Path(entry.path).resolve()
            if not real.is_relative_to(min(above, key=lambda p: len(p.parts))):
                tree.outside.append(name)
            elif real in above:  # a link to a folder above is a circle
                continue
            elif depth == MAX_DEPTH:
                tree.deep.append(name)
            else:
                yield from _files(real, f"{name}/", tree, above | {real}, depth + 1)


def folder_of(name: str) -> str:
    """`a/b.png` lies in `a`; a file at the top lies in the empty string."""
    return name.rpartition("/")[0]


def stem_of(name: str) -> str:
    return PurePosixPath(name).stem


def same_name(name: str) -> str:
    """A form in which names are equal that a person takes for equal.

    Windows writes backslashes, Macs write accents as letters of their own, and neither tells
    capitals apart.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold().removeprefix("./")
