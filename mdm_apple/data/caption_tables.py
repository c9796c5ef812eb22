"""Tables of captions beside pictures: .jsonl, .json, .csv, .tsv and .parquet, from outside.

Input: a file of a `Tree`. Output: rows of file name and caption, or None for a table of other
things. A table named `metadata` must be one of captions.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError
from mdm_apple.data.folder_tree import Tree, is_picture
from mdm_apple.data.read_picture import shown
from mdm_apple.errors import require
from mdm_apple.text.captions import clean_caption

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_TABLE_BYTES = 1 << 30
MAX_LINE_BYTES = 8 * MAX_CAPTION_BYTES  # JSON may write one character as six
METADATA = "metadata"

# Columns in use, the documented one first.
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path", "image_path", "image_name", "img")
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "comment")
NO_HEADER = ["file_name", "text"]


@dataclass(frozen=True)
class Row:
    """One line: a file name as written, a clean caption, and the place for a message."""

    file: str
    caption: str
    where: str


def is_table(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_metadata(name: str) -> bool:
    """Whether a table's name promises captions."""
    return PurePosixPath(name).stem.lower() == METADATA


def read_table(tree: Tree, name: str) -> list[Row] | None:
    """The rows of a table in the order of its lines; None if it has no captions of files."""
    path = tree.path(name, name)
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(f"{shown(path)}: expected a table of at most 1 GiB.")
    required = is_metadata(name)
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        return _none_of(path, required, "it is empty")
    columns = _columns(first[1])
    if columns is None:
        found = ", ".join(map(shown, list(first[1])[:10])) or "no columns"
        return _none_of(path, required, f"found {found}")
    return [_row(tree.root / name, columns, *line) for line in (first, *lines)]


def _none_of(path: Path, required: bool, found: str) -> None:
    """None for a table of other things; raises DataError for one that must hold captions."""
    if required:
        raise DataError(
            f'{shown(path)}: expected the keys "file_name" and "text", both text; {found}.'
        )


def _columns(line: Mapping[str, object]) -> tuple[str, str] | None:
    """The columns of file names and of captions: of several, the first in the lists above."""
    file = next((name for name in FILE_COLUMNS if name in line), None)
    caption = next((name for name in CAPTION_COLUMNS if name in line), None)
    return None if file is None or caption is None else (file, caption)


def _row(table: Path, columns: tuple[str, str], number: int, line: Mapping[str, object]) -> Row:
    where = f"{shown(table)} line {number}"
    file, text = (line.get(column) for column in columns)
    if not isinstance(file, str) or not isinstance(text, str):
        raise DataError(f'{where}: expected the keys "{columns[0]}" and "{columns[1]}", both text.')
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
        raise DataError(f"{where}: expected a caption of at most 64 KiB.")
    return Row(file, clean_caption(text), where)


# (number for a message, fields by name)
Lines = Iterator[tuple[int, Mapping[str, object]]]


def _lines(path: Path) -> Lines:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _jsonl(path)
    if suffix == ".json":
        return _json(path)
    if suffix == ".parquet":
        return _parquet(path)
    return _csv(path)


def _jsonl(path: Path) -> Lines:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{shown(path)} line {number}: is longer than a caption may be.")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, _fields(_parsed(line, f"{shown(path)} line {number}"))


def _parsed(data: bytes, where: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: expected one JSON object in UTF-8.") from None


def _fields(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _json(path: Path) -> Lines:
    """A list of objects, or an object from file names to captions or to objects with one."""
    value = _parsed(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), shown(path))
    if isinstance(value, list):
        for number, entry in enumerate(cast("list[object]", value), 1):
            yield number, _fields(entry)
        return
    named = _fields(value)
    if not all(is_picture(name) for name in named):
        return  # about one picture, or about something else
    for number, (name, entry) in enumerate(named.items(), 1):
        fields = {"text": entry} if isinstance(entry, str) else _fields(entry)
        yield number, {"file_name": name, **fields}


def _csv(path: Path) -> Lines:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)}: expected UTF-8 text; save it as UTF-8.") from None
    header = text.partition("\n")[0]
    delimiter = max("\t;|,", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(rows, [])]
        if names and is_picture(names[0]):  # no header
            rows, names = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), NO_HEADER
        for row in rows:
            if row:
                yield rows.line_num, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{shown(path)} line {rows.line_num}: {error}; mend the table.") from None


def _parquet(path: Path) -> Lines:
    arrow: Any = require("pyarrow")
    parquet: Any = require("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path)
        wanted = [n for n in (*FILE_COLUMNS, *CAPTION_COLUMNS) if n in table.schema_arrow.names]
        entries: Sequence[dict[str, object]] = table.read(columns=wanted).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{shown(path)}: cannot be read as Parquet ({shown(reason)}).") from None
    for number, entry in enumerate(entries, 1):
        if isinstance(entry.get("image"), dict):
            raise DataError(
                f"{shown(path)}: holds its pictures inside; save them as files beside a "
                "metadata.jsonl."
            )
        yield number, entry
