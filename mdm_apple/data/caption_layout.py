"""Where the captions of a folder of pictures come from, or why that is unclear.

Input: a `Tree`. Output: a `Listing`. Three sources are understood:

- tables (see `caption_tables`) anywhere in the folder; names in them count from the table's folder;
- a caption file per picture (see `caption_files`);
- a folder per class (see `class_folders`).

A folder that can be read in two ways is refused, and the sentence names both. A single picture or
caption that cannot be used is a `Fault` of the listing; who reads it decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from mdm_apple.data.caption_files import caption_files, read_caption
from mdm_apple.data.caption_tables import (
    Row,
    UnreadableTableError,
    is_metadata,
    is_table,
    read_table,
)
from mdm_apple.data.class_folders import SPLITS, about_repeats, by_classes
from mdm_apple.data.dataset import DataError
from mdm_apple.data.folder_tree import MAX_DEPTH, Tree, folder_of
from mdm_apple.data.kinds import Kind
from mdm_apple.data.listing import Fault, Listing, counted, named, unclear
from mdm_apple.data.named_pictures import find_pictures
from mdm_apple.data.read_picture import shown

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.I)
LABELS = 4  # numbers of a caption that are a box, at least


def layouts(kind: Kind) -> str:
    """What is expected of a folder, as a sentence without its full stop."""
    return (
        f"Expected a metadata.jsonl or metadata.csv, or {kind.one}s with a .txt caption each, or "
        f"one sub-folder of {kind.one}s per class"
    )


def list_captions(tree: Tree) -> Listing:
    """Pair pictures with captions. Raises DataError, also if the folder can be read in two ways."""
    listing, unreadable = _listed(tree)
    remarks = [*listing.remarks, *unreadable, *_numbers(tree, listing)]
    skipped = list(listing.skipped)
    if tree.deep:
        skipped.append(f"{tree.deep[0]}/")
        remarks.append(
            f"{shown(tree.deep[0])} lies more than {MAX_DEPTH} folders down and is not searched; "
            f"move its {tree.kind.one}s up."
        )
    return dataclasses.replace(listing, remarks=remarks, skipped=skipped)


def _listed(tree: Tree) -> tuple[Listing, list[str]]:
    """A listing, and a remark on each table that cannot be read."""
    splits = _splits(tree)
    if not any(is_table(name) and "/" not in name for name in tree.files):
        _refuse_several(tree, splits)
    beside = caption_files(tree)
    candidates = [name for name in tree.files if is_table(name)]
    metadata = next(filter(is_metadata, candidates), None)
    if metadata and beside:  # unclear before it is read
        raise _both(tree, metadata, beside)
    tables: dict[str, list[Row]] = {}
    unreadable: list[str] = []
    for name in candidates:
        try:
            rows = read_table(tree, name)
        except UnreadableTableError as error:
            unreadable.append(f"{shown(name)} is not used: {error}")
            continue
        if rows:
            tables[name] = rows
    if tables and beside:
        raise _both(tree, next(iter(tables)), beside)
    if tables:
        return _by_tables(tree, tables, splits), unreadable
    _refuse_several(tree, splits)
    if tree.outside:
        raise DataError(
            f"{shown(tree.outside[0])}: leads out of the folder; copy the {tree.kind.one}s into "
            f"{shown(tree.root)}."
        )
    if beside:
        return _by_files(tree, beside), unreadable
    return by_classes(tree, splits[0] if splits else ""), unreadable


def _both(tree: Tree, table: str, beside: Mapping[str, str]) -> DataError:
    picture, file = next(iter(beside.items()))
    return unclear(tree, f"the table {table}", f"{file} for {picture}")


def _splits(tree: Tree) -> list[str]:
    """The folders at the top, if they are parts of a data set and no pictures lie beside them."""
    top = list(dict.fromkeys(name.partition("/")[0] for name in tree.pictures if "/" in name))
    alone = all("/" in name for name in tree.pictures)
    return top if alone and top and all(name.lower() in SPLITS for name in top) else []


def _refuse_several(tree: Tree, splits: Sequence[str]) -> None:
    if len(splits) > 1:
        raise DataError(
            f"{shown(tree.root)}: holds the splits {' and '.join(map(shown, splits))}; name one of "
            f"them, such as {shown(tree.root / splits[0])}."
        )


def _numbers(tree: Tree, listing: Listing) -> list[str]:
    """A remark if all captions are numbers. Raises DataError if they are boxes."""
    captions = [caption for _, caption in listing.pairs if caption]
    if not captions or not all(_NUMBER.fullmatch(n) for text in captions for n in text.split()):
        return []
    if any(caption.count(" ") + 1 >= LABELS for caption in captions):
        longest = max(captions, key=len)[:60]
        raise DataError(
            f"{shown(tree.root)}: unclear whether {listing.source} holds captions or labels of "
            f"boxes: all are numbers, such as {longest!r}; give captions in words."
        )
    return [f"all captions are numbers, such as {captions[0]!r}."]


def _by_tables(tree: Tree, tables: Mapping[str, Sequence[Row]], splits: Sequence[str]) -> Listing:
    every = [(table, row) for table, rows in tables.items() for row in rows]
    asked = [(table, row) for table, row in every if row.file or row.error is None]
    faults = [
        Fault(f"{table} line {row.number}", row.error)
        for table, row in every
        if row.error is not None and not row.file
    ]
    pairs: list[tuple[str, str]] = []
    listed_by: dict[str, str] = {}
    respelled = 0
    meant = find_pictures(tree, [(folder_of(table), row) for table, row in asked])
    for (table, row), found in zip(asked, meant, strict=True):
        if isinstance(found, DataError):
            faults.append(Fault(row.file, row.error or found, missing=row.error is None))
            continue
        respelled += not found.as_written
        picture = found.picture
        first = listed_by.setdefault(picture, table)
        if first != table:
            raise unclear(tree, f"{first} for {picture}", table)
        if row.error is None:
            pairs.append((picture, row.caption))
        else:
            faults.append(Fault(picture, row.error))
    if not any("/" not in table for table in listed_by.values()):
        _refuse_several(tree, splits)
    remarks: list[str] = []
    if respelled:
        some = "name is" if respelled == 1 else "names are"
        remarks.append(
            f"{respelled} file {some} spelled differently in the table (slashes, capitals, accents "
            f"or the folder); {'it fits' if respelled == 1 else 'each fits'} exactly one "
            f"{tree.kind.one}."
        )
    unlisted = [name for name in tree.pictures if name not in listed_by]
    if unlisted:
        verb = "is" if len(unlisted) == 1 else "are"
        remarks.append(
            f"{len(unlisted)} of {counted(len(tree.pictures), tree.kind.one)} "
            f"{verb} in no table and {verb} not used{named(unlisted)}."
        )
    skipped = [name for name in tree.files if not tree.kind.has(name) and name not in tables]
    source = f"{'the table' if len(tables) == 1 else 'the tables'} {', '.join(tables)}"
    return Listing(source, pairs, unlisted, skipped, faults, remarks)


def _by_files(tree: Tree, captions: Mapping[str, str]) -> Listing:
    """Pictures with a caption file; a folder where most pictures have none is unclear."""
    pictures = tree.pictures_by_folder
    some = next(iter(captions.values()))
    for folder, names in pictures.items():
        count = sum(name in captions for name in names)
        if folder and 2 * count < len(names):
            raise unclear(tree, f"captions such as {some}", f"the name of the folder {folder}")
    pairs: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for name in tree.pictures:
        if name in captions:
            try:
                pairs.append((name, read_caption(tree, captions[name])))
            except DataError as error:
                faults.append(Fault(name, error))
    used = {*captions, *captions.values()}
    return Listing(
        f"a caption file for each {tree.kind.one}",
        pairs,
        [name for name in tree.pictures if name not in captions],
        [name for name in tree.files if name not in used],
        faults,
        about_repeats({folder.rpartition("/")[2] for folder in pictures}, tree.kind),
        beside=True,
    )
