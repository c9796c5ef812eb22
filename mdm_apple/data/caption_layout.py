"""Where the captions of a folder of pictures come from, or why that is unclear.

Input: a `Tree`. Output: a `Listing`. Three sources are understood:

- tables (see `caption_tables`) anywhere in the folder; names in them count from the table's folder;
- a caption file per picture, of the same stem, beside it or in a folder of captions;
- a folder per class, whose name is the caption of all its pictures.

A folder that can be read in two ways is refused, and the sentence names both. A single picture or
caption that cannot be used is a `Fault` of the listing; who reads it decides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mdm_apple.data.caption_tables import Row, is_metadata, is_table, read_table
from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError
from mdm_apple.data.folder_tree import Tree, folder_of, is_picture, same_name, stem_of
from mdm_apple.data.read_picture import shown
from mdm_apple.text.captions import clean_caption

CAPTION_SUFFIXES = (".txt", ".caption", ".cap")
SPLITS = ("train", "training", "test", "val", "valid", "validation", "dev", "eval")
MAX_NAMED = 10
# Files about the whole folder, which lie beside pictures of every layout.
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|credits?|authors?|changelog|sources?)\b", re.I)
_REPEATS = re.compile(r"(\d+)_(?=.)")
LAYOUTS = (
    "Expected a metadata.jsonl or metadata.csv, or pictures with a .txt caption each, or one "
    "sub-folder of pictures per class"
)


@dataclass(frozen=True)
class Fault:
    """A picture that cannot be used: its name as written, and the refusal that says why.

    missing: it is named in a table, and no picture of the folder fits.
    """

    name: str
    error: DataError
    missing: bool = False


@dataclass(frozen=True)
class Listing:
    """(path below the folder, caption) pairs, and what else was found.

    source: where captions come from, for a person. beside: each in a file of its own. unlisted:
    pictures without a caption. skipped: files without use, save pictures that a remark names.
    faults: pictures with a caption that cannot be used. remarks: sentences for a person.
    """

    source: str
    pairs: list[tuple[str, str]]
    unlisted: list[str]
    skipped: list[str]
    faults: list[Fault] = field(default_factory=list[Fault])
    remarks: list[str] = field(default_factory=list[str])
    beside: bool = False


def list_captions(tree: Tree) -> Listing:
    """Pair pictures with captions. Raises DataError, also if the folder can be read in two ways."""
    splits = _splits(tree)
    if len(splits) > 1 and not any(is_table(name) and "/" not in name for name in tree.files):
        raise DataError(
            f"{shown(tree.root)}: holds the splits {' and '.join(map(shown, splits))}; name one of "
            f"them, such as {shown(tree.root / splits[0])}."
        )
    beside = _caption_files(tree)
    candidates = [name for name in tree.files if is_table(name)]
    metadata = next(filter(is_metadata, candidates), None)
    if metadata and beside:  # unclear before it is read
        raise _both(tree, metadata, beside)
    tables = {name: rows for name in candidates if (rows := read_table(tree, name))}
    if tables and beside:
        raise _both(tree, next(iter(tables)), beside)
    if tables:
        return _by_tables(tree, tables)
    if tree.outside:
        raise DataError(
            f"{shown(tree.outside[0])}: leads out of the folder; copy the pictures into "
            f"{shown(tree.root)}."
        )
    if beside:
        return _by_files(tree, beside)
    return _by_classes(tree, splits[0] if splits else "")


def _both(tree: Tree, table: str, beside: Mapping[str, str]) -> DataError:
    picture, file = next(iter(beside.items()))
    return _unclear(tree, f"the table {table}", f"{file} for {picture}")


def _splits(tree: Tree) -> list[str]:
    """The folders at the top, if they are parts of a data set and no pictures lie beside them."""
    top = list(dict.fromkeys(name.partition("/")[0] for name in tree.pictures if "/" in name))
    alone = all("/" in name for name in tree.pictures)
    return top if alone and top and all(name.lower() in SPLITS for name in top) else []


# Tables


def _by_tables(tree: Tree, tables: Mapping[str, Sequence[Row]]) -> Listing:
    names = _Names(tree)
    pairs: list[tuple[str, str]] = []
    faults: list[Fault] = []
    listed_by: dict[str, str] = {}
    respelled = 0
    for table, rows in tables.items():
        for row in rows:
            try:
                picture, as_written = names.find(folder_of(table), row)
            except DataError as error:
                faults.append(Fault(row.file, error, missing=True))
                continue
            respelled += not as_written
            first = listed_by.setdefault(picture, table)
            if first != table:
                raise _unclear(tree, f"{first} for {picture}", table)
            pairs.append((picture, row.caption))
    remarks: list[str] = []
    if respelled:
        remarks.append(
            f"{respelled} file names are spelled differently in the table (slashes, capitals, "
            "accents or the folder); each fits exactly one picture."
        )
    unlisted = [name for name in tree.pictures if name not in listed_by]
    if unlisted:
        remarks.append(
            f"{len(unlisted)} of {len(tree.pictures)} pictures are in no table and are not used"
            f"{named(unlisted)}."
        )
    skipped = [name for name in tree.files if not is_picture(name) and name not in tables]
    source = f"{'the table' if len(tables) == 1 else 'the tables'} {', '.join(tables)}"
    return Listing(source, pairs, unlisted, skipped, faults, remarks)


class _Names:
    """Finds the picture that a table means."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._whole: dict[str, list[str]] = defaultdict(list)
        self._last: dict[str, list[str]] = defaultdict(list)
        for name in tree.pictures:
            self._whole[same_name(name)].append(name)
            self._last[same_name(name).rpartition("/")[2]].append(name)

    def find(self, folder: str, row: Row) -> tuple[str, bool]:
        """The picture, and whether its path is the written one, from the table's folder."""
        tree, where = self._tree, row.where
        if not is_picture(row.file):
            raise DataError(
                f"{where}: {shown(row.file[:200])} is not a .png .jpg .jpeg .webp or .bmp file."
            )
        written = str(PurePosixPath(folder, row.file))
        if written in tree.files:
            tree.path(written, where)
            return written, True
        for candidates in (
            self._whole.get(same_name(written), []),
            self._whole.get(same_name(row.file), []),
            self._last.get(same_name(row.file).rpartition("/")[2], []),
        ):
            if len(candidates) == 1 and not _leaves(row.file):
                tree.path(candidates[0], where)
                return candidates[0], False
            if len(candidates) > 1:
                raise DataError(
                    f"{where}: {shown(row.file[:200])} may be {shown(candidates[0])} or "
                    f"{shown(candidates[1])}; write the path below the table's folder."
                )
        try:
            tree.path(written, f"{where}: {shown(row.file[:200])}")
        except DataError:
            raise
        except (OSError, ValueError, RuntimeError):
            raise DataError(f"{where}: is not a possible file name; correct file_name.") from None
        return written, True  # in a folder too deep to be listed


def _leaves(name: str) -> bool:
    """Whether a written path is absolute or climbs: it is refused even if its last part fits."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


# A caption file per picture


def _caption_files(tree: Tree) -> dict[str, str]:
    """The caption file of each picture that has one. Raises DataError if one has two."""
    texts = [name for name in tree.files if name.lower().endswith(CAPTION_SUFFIXES)]
    by_place: dict[tuple[str, str], list[str]] = {}
    for name in texts:
        by_place.setdefault((folder_of(name), stem_of(name)), []).append(name)
    folders = dict.fromkeys(folder_of(name) for name in texts)
    found: dict[str, str] = {}
    for folder, names in tree.pictures_by_folder.items():
        place = _captions_of(tree, folder, names, by_place, folders)
        if place is None:
            continue
        for name in names:
            # `0.txt` or `0.png.txt`
            keys = (place, stem_of(name)), (place, PurePosixPath(name).name)
            fitting = [text for key in keys for text in by_place.get(key, [])]
            if len(fitting) > 1 and len({_read_caption(tree, text) for text in fitting}) > 1:
                raise _unclear(tree, fitting[0], fitting[1])
            if fitting:
                found[name] = fitting[0]
    users: dict[str, str] = {}
    for name, text in found.items():
        first = users.setdefault(text, name)
        if folder_of(first) != folder_of(name):
            raise _unclear(tree, f"{text} for {first}", f"for {name}")
    return found


def _captions_of(
    tree: Tree,
    folder: str,
    pictures: Sequence[str],
    by_place: Mapping[tuple[str, str], Sequence[str]],
    folders: Iterable[str],
) -> str | None:
    """The folder that holds the captions of a folder's pictures: itself, or one like it."""

    def fits(place: str) -> bool:
        keys = ((place, key) for p in pictures for key in (stem_of(p), PurePosixPath(p).name))
        return any(key in by_place for key in keys)

    if fits(folder):
        return folder
    others = [f for f in folders if f != folder and _alike(folder, f) and fits(f)]
    # captions that lie beside pictures belong to those
    taken = tree.pictures_by_folder
    others = [f for f in others if f not in taken] or others
    if len(others) > 1:
        raise _unclear(tree, f"the captions in {others[0]}", f"those in {others[1]}")
    return others[0] if others and others[0] not in taken else None


def _alike(one: str, other: str) -> bool:
    """Whether two folders differ in one name, as `images/cats` and `captions/cats`, or in none."""
    a, b = PurePosixPath(one).parts, PurePosixPath(other).parts
    if len(a) == len(b):
        return sum(x != y for x, y in zip(a, b, strict=True)) == 1
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return len(longer) == len(shorter) + 1 and longer[: len(shorter)] == shorter


def _by_files(tree: Tree, captions: Mapping[str, str]) -> Listing:
    """Pictures with a caption file; a folder where most pictures have none is unclear."""
    pictures = tree.pictures_by_folder
    some = next(iter(captions.values()))
    for folder, names in pictures.items():
        count = sum(name in captions for name in names)
        if folder and 2 * count < len(names):
            raise _unclear(tree, f"captions such as {some}", f"the name of the folder {folder}")
    pairs: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for name in tree.pictures:
        if name in captions:
            try:
                pairs.append((name, _read_caption(tree, captions[name])))
            except DataError as error:
                faults.append(Fault(name, error))
    used = {*captions, *captions.values()}
    return Listing(
        "a caption file for each picture",
        pairs,
        [name for name in tree.pictures if name not in captions],
        [name for name in tree.files if name not in used],
        faults,
        _about_repeats({folder.rpartition("/")[2] for folder in pictures}),
        beside=True,
    )


def _read_caption(tree: Tree, name: str) -> str:
    path = tree.path(name, name)
    with path.open("rb") as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise DataError(f"{shown(path)}: expected a caption of at most 64 KiB.")
    try:
        return clean_caption(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)}: expected UTF-8 text; save it as UTF-8.") from None


# A folder per class


def _by_classes(tree: Tree, split: str) -> Listing:
    prefix = f"{split}/" if split else ""
    inside = {name: name.removeprefix(prefix) for name in tree.pictures}
    classes = list(dict.fromkeys(n.split("/")[0] for n in inside.values() if n.count("/") == 1))
    loose = [name for name, below in inside.items() if "/" not in below]
    if not classes:
        return Listing("nothing", [], tree.pictures, list(tree.files))
    if loose:
        raise _unclear(tree, f"the picture {loose[0]}", f"the folder of pictures {classes[0]}")
    captionlike = [n for n in tree.files if _caption_like(n)]
    if captionlike:
        raise _unclear(tree, f"the name of the folder {classes[0]}", captionlike[0])
    if len(classes) == 1:
        count = len(inside)
        raise DataError(
            f"{shown(tree.root)}: unclear whether {shown(classes[0])!r} is the caption of all "
            f"{count} pictures in that folder or only where they lie; put the caption of each "
            "picture in a .txt file beside it, or list them in a metadata.jsonl."
        )
    repeated = all(_REPEATS.match(name) for name in classes)
    pairs = [
        (name, _class_caption(below.split("/")[0], repeated))
        for name, below in inside.items()
        if below.count("/") == 1
    ]
    used = {name for name, _ in pairs}
    return Listing(
        "the names of the folders",
        pairs,
        [name for name in tree.pictures if name not in used],
        [name for name in tree.files if name not in used],
        remarks=_about_repeats(classes) if repeated else [],
    )


def _class_caption(folder: str, repeated: bool) -> str:
    name = _REPEATS.sub("", folder, count=1) if repeated else folder
    return clean_caption(name.replace("_", " ").replace("-", " "))


def _about_repeats(folders: Iterable[str]) -> list[str]:
    """A remark on folder names that ask for repeats, as `10_cat` does."""
    asked = sorted({found[1] for folder in folders if (found := _REPEATS.match(folder))})
    if not asked:
        return []
    return [
        f"the number before _ in a folder's name ({', '.join(asked[:MAX_NAMED])}) is no part of a "
        "caption; every picture is seen equally often, whatever repeats it asks for."
    ]


def _caption_like(name: str) -> bool:
    file = PurePosixPath(name).name
    return (is_table(file) or file.lower().endswith(CAPTION_SUFFIXES)) and not _ABOUT.match(file)


# Sentences


def named(files: Sequence[str]) -> str:
    """The first few names in brackets."""
    more = len(files) - MAX_NAMED
    return (
        f" ({', '.join(map(shown, files[:MAX_NAMED]))}{f' and {more} more' if more > 0 else ''})"
        if files
        else ""
    )


def _unclear(tree: Tree, one: str, other: str) -> DataError:
    return DataError(
        f"{shown(tree.root)}: unclear where captions come from, {shown(one)} or {shown(other)}; "
        "keep one of the two."
    )
