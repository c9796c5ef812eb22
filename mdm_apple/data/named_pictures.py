"""Which picture of a folder each row of a table means.

Input: a `Tree` and rows. Output: a picture for each, or why there is none. A name that is spelled
differently, or leaves its folder out, is understood only as a picture that no row names better.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from mdm_apple.data.caption_tables import Row
from mdm_apple.data.dataset import DataError
from mdm_apple.data.folder_tree import Tree, folder_of, same_name
from mdm_apple.data.read_picture import shown


@dataclass(frozen=True)
class Meant:
    """A picture below the folder. as_written: its path is the one of the row."""

    picture: str
    as_written: bool


def find_pictures(tree: Tree, rows: Sequence[tuple[str, Row]]) -> list[Meant | DataError]:
    """The picture of each row.

    rows: each with the folder of its table.
    """
    finder = _Finder(tree)
    found: dict[int, Meant | DataError] = {}
    for step in (finder.exactly, finder.respelled, finder.by_last_part):
        left = {index: _Asked(tree, *row) for index, row in enumerate(rows) if index not in found}
        found |= step(left)
        finder.leave_out({meant.picture for meant in found.values() if isinstance(meant, Meant)})
    return [found[index] for index in range(len(rows))]


class _Asked:
    """A row, and the path that it means from the folder."""

    def __init__(self, tree: Tree, folder: str, row: Row) -> None:
        self.folder = folder
        self.row = row
        self.as_written = _below(tree, folder, row.file)
        slashes = row.file.replace("\\", "/")
        self.path = _below(tree, folder, slashes)
        self.from_root = _below(tree, "", slashes)
        self.names_folder = "/" in slashes.removeprefix("./")


def _below(tree: Tree, folder: str, name: str) -> str | None:
    """A path without `.` and `..`; None if it leaves the folder, even if it comes back."""
    path = posixpath.normpath(posixpath.join(folder, name))
    root = f"{tree.root.as_posix()}/"
    path = path.removeprefix(root)
    return None if path.startswith("/") or path.split("/")[0] == ".." else path


class _Finder:
    """Looks for pictures in steps, the best fitting first."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.leave_out(frozenset())

    def leave_out(self, taken: Set[str]) -> None:
        """Look only for pictures that no row names better."""
        self._whole: dict[str, list[str]] = defaultdict(list)
        self._last: dict[str, list[str]] = defaultdict(list)
        for name in self._tree.pictures:
            if name not in taken:
                self._whole[same_name(name)].append(name)
                self._last[same_name(name).rpartition("/")[2]].append(name)

    def exactly(self, left: Mapping[int, _Asked]) -> dict[int, Meant | DataError]:
        """Rows whose path is that of a file, and those that can be none."""
        found: dict[int, Meant | DataError] = {}
        for index, asked in left.items():
            where, file = asked.row.where, shown(asked.row.file[:200])
            if not self._tree.kind.has(asked.row.file):
                found[index] = DataError(f"{where}: {file} is not a {self._tree.kind.listed} file.")
            elif asked.as_written is None or asked.path is None:
                found[index] = DataError(
                    f"{where}: {file}: leads out of the folder; copy the "
                    f"{self._tree.kind.one} into {shown(self._tree.root)}."
                )
            elif asked.as_written in self._tree.files:
                found[index] = self._real(asked.as_written, True, where)
        return found

    def respelled(self, left: Mapping[int, _Asked]) -> dict[int, Meant | DataError]:
        """Rows whose path differs in slashes, capitals or accents, or counts from the top."""
        found: dict[int, Meant | DataError] = {}
        for index, asked in left.items():
            candidates = self._whole.get(same_name(asked.path or ""), [])
            if not candidates and not self._has_folder(asked):
                candidates = self._whole.get(same_name(asked.from_root or ""), [])
            if candidates:
                found[index] = self._one(candidates, asked)
        return found

    def by_last_part(self, left: Mapping[int, _Asked]) -> dict[int, Meant | DataError]:
        """The other rows: by the name of the file, where the folder does not exist."""
        wanted: dict[str, dict[str, _Asked]] = defaultdict(dict)
        for asked in left.values():
            path = same_name(asked.path or "")
            wanted[path.rpartition("/")[2]].setdefault(path, asked)
        found: dict[int, Meant | DataError] = {}
        for index, asked in left.items():
            last = same_name(asked.path or "").rpartition("/")[2]
            candidates = [] if self._has_folder(asked) else self._last.get(last, [])
            if not candidates:
                found[index] = self._unlisted(asked)
            elif len(candidates) == 1 and len(wanted[last]) > 1:
                one, other = (shown(a.row.file[:200]) for a in list(wanted[last].values())[:2])
                found[index] = DataError(
                    f"{asked.row.where}: {shown(candidates[0])} may be {one} or {other}; write the "
                    "path below the table's folder."
                )
            else:
                found[index] = self._one(candidates, asked)
        return found

    def _has_folder(self, asked: _Asked) -> bool:
        """Whether there is the folder in which a row's picture should lie.

        A row without a folder means that of its table, if there are pictures.
        """
        if not asked.names_folder:
            return asked.folder in self._tree.pictures_by_folder
        for path in (asked.path, asked.from_root):
            folder = folder_of(path or "")
            if same_name(folder) in self._folders:
                return True
            try:
                if folder and (self._tree.root / folder).is_dir():
                    return True
            except (OSError, ValueError):
                pass  # no possible name
        return False

    @cached_property
    def _folders(self) -> set[str]:
        parents = {folder_of(name) for name in self._tree.files}
        return {same_name(str(p)) for f in parents if f for p in _with_parents(f)}

    def _one(self, candidates: Sequence[str], asked: _Asked) -> Meant | DataError:
        where = asked.row.where
        if len(candidates) > 1:
            return DataError(
                f"{where}: {shown(asked.row.file[:200])} may be {shown(candidates[0])} or "
                f"{shown(candidates[1])}; write the path below the table's folder."
            )
        return self._real(candidates[0], False, where)

    def _unlisted(self, asked: _Asked) -> Meant | DataError:
        """A picture that is not listed: missing, or in a folder too deep to be listed."""
        where, path = asked.row.where, asked.as_written or ""
        try:
            return self._real(path, True, f"{where}: {shown(asked.row.file[:200])}")
        except (OSError, ValueError, RuntimeError):
            return DataError(f"{where}: is not a possible file name; correct file_name.")

    def _real(self, name: str, as_written: bool, where: str) -> Meant | DataError:
        try:
            self._tree.path(name, where)
        except DataError as error:
            return error
        return Meant(name, as_written)


def _with_parents(folder: str) -> Sequence[PurePosixPath]:
    path = PurePosixPath(folder)
    return (path, *path.parents[:-1])
