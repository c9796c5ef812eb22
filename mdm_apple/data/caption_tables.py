"""Tables of captions beside pictures: .jsonl, .json, .csv, .tsv and .parquet, from outside.

Input: a file of a `Tree`. Output: rows of file name and caption, or None for a table of other
things. A table named `metadata` must be one of captions; another that cannot be read is not used.
A row that cannot be used carries its refusal; who reads it decides.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError
from mdm_apple.data.folder_tree import Tree
from mdm_apple.data.kinds import is_picture_or_clip
from mdm_apple.data.read_picture import shown
from mdm_apple.errors import MissingPackageError, require
from mdm_apple.text.captions import clean_caption

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_TABLE_BYTES = 1 << 30
MAX_LINE_BYTES = 8 * MAX_CAPTION_BYTES  # JSON may write one character as six
METADATA = "metadata"

# Columns in use, the documented one first.
FILE_COLUMNS = (
    *("file_name", "filename", "file", "image", "path", "image_path", "image_name", "img"),
    *("video", "video_path", "clip"),
)
CAPTION_COLUMNS = ("text", "caption", "prompt", "description", "comment")
NO_HEADER = ["file_name", "text"]
MAX_SHOWN = 10
MAX_BAD_AT_FIRST = 100


@dataclass(frozen=True)
class Row:
    """One line: a file name as written, a clean caption, and the place for a message.

    number: of the line. error: why the row cannot be used; its caption is then empty, and its file
    name may be.
    """

    file: str
    caption: str
    where: str
    number: int
    error: DataError | None = None


class UnreadableTableError(DataError):
    """A table of which not even the columns can be read."""


def is_table(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_metadata(name: str) -> bool:
    """Whether a table's name promises captions."""
    return PurePosixPath(name).stem.lower() == METADATA


def read_table(tree: Tree, name: str) -> list[Row] | None:
    """The rows of a table in the order of its lines; None if it has no captions of files.

    Raises:
        UnreadableTableError: its columns cannot be read, and its name promises no captions.
        DataError: it holds captions, and cannot be read as a whole or in one way only.
    """
    path = tree.path(name, name)
    required = is_metadata(name)
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise DataError(f"{shown(path)}: expected a table of at most 1 GiB.")
        lines = _lines(path)
        first = list(_up_to_a_good_one(lines))
    except (DataError, MissingPackageError) as error:
        if required:
            raise
        raise UnreadableTableError(str(error)) from None
    if not first:
        found = "it has no rows" if path.stat().st_size else "it is empty"
        return _none_of(path, required, found)
    fields = first[-1].fields
    if isinstance(fields, DataError):
        if required:
            raise fields
        raise UnreadableTableError(str(fields))
    columns = _columns(fields)
    if columns is None:
        found = ", ".join(map(shown, list(fields)[:MAX_SHOWN]))
        return _none_of(path, required, f"found {found}" if found else "found no keys")
    return [_row(tree.root / name, columns, line) for line in chain(first, lines)]


def _up_to_a_good_one(lines: Lines) -> Lines:
    """The first line that tells the columns, and the bad ones before it; not many of these."""
    for line in islice(lines, MAX_BAD_AT_FIRST):
        yield line
        if not isinstance(line.fields, DataError):
            return


def _none_of(path: Path, required: bool, found: str) -> None:
    """None for a table of other things; raises DataError for one that must hold captions."""
    if required:
        raise DataError(
            f'{shown(path)}: expected the keys "file_name" and "text", both text; {found}.'
        )


def _columns(fields: Mapping[str, object]) -> tuple[str, str] | None:
    """The columns of file names and of captions: of several, the first in the lists above."""
    file = next((name for name in FILE_COLUMNS if name in fields), None)
    caption = next((name for name in CAPTION_COLUMNS if name in fields), None)
    return None if file is None or caption is None else (file, caption)


def _row(table: Path, columns: tuple[str, str], line: Line) -> Row:
    """Raises DataError for a line of two different captions."""
    where = f"{shown(table)} line {line.number}"
    if isinstance(line.fields, DataError):
        return Row(line.file, "", where, line.number, line.fields)
    file, text = (line.fields.get(column) for column in columns)
    if not isinstance(file, str) or not isinstance(text, str):
        error = DataError(
            f'{where}: expected the keys "{columns[0]}" and "{columns[1]}", both text.'
        )
        return Row(file if isinstance(file, str) else "", "", where, line.number, error)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
        error = DataError(f"{where}: expected a caption of at most 64 KiB.")
        return Row(file, "", where, line.number, error)
    caption = clean_caption(text)
    for column in CAPTION_COLUMNS:
        other = line.fields.get(column)
        if isinstance(other, str) and other.strip() and clean_caption(other) != caption:
            raise DataError(
                f"{where}: unclear whether {columns[1]!r} or {column!r} holds the captions; keep "
                "one of the two columns."
            )
    return Row(file, caption, where, line.number)


@dataclass(frozen=True)
class Line:
    """One line: its number for a message, and its fields by name in small letters, or a refusal.

    file: the file name of a refused line, where it is known.
    """

    number: int
    fields: Mapping[str, object] | DataError
    file: str = ""


Lines = Iterator[Line]


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
            where = f"{shown(path)} line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{where}: is longer than a caption may be.")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                try:
                    yield Line(number, _fields(_parsed(line, where), where))
                except DataError as error:
                    yield Line(number, error)


def _parsed(data: bytes, where: str) -> object:
    try:
        return json.loads(data, object_pairs_hook=_once)
    except _RepeatedError as error:
        raise DataError(f"{where}: names {shown(str(error))} twice; keep one.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{where}: expected one JSON object in UTF-8.") from None


class _RepeatedError(ValueError):
    """A key that is there twice."""


def _once(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedError(repr(key[:80]))
        found[key] = value
    return found


def _fields(value: object, where: str) -> Mapping[str, object]:
    """An object's fields by name in small letters. Raises DataError if two are then the same."""
    if not isinstance(value, dict):
        return {}
    try:
        return _once((_column(k), v) for k, v in cast("dict[str, object]", value).items())
    except _RepeatedError as error:
        raise DataError(f"{where}: names {shown(str(error))} twice; keep one.") from None


def _column(name: str) -> str:
    return name.strip().lower()


def _json(path: Path) -> Lines:
    """A list of objects, or an object from file names to captions or to objects with one."""
    value = _parsed(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), shown(path))
    if isinstance(value, list):
        for number, entry in enumerate(cast("list[object]", value), 1):
            yield Line(number, _fields(entry, f"{shown(path)} line {number}"))
        return
    named = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not named:
        return
    if not all(
        is_picture_or_clip(name) for name in named
    ):  # about one picture, or about something else
        yield Line(1, dict.fromkeys(named))
        return
    for number, (name, entry) in enumerate(named.items(), 1):
        fields = {"text": entry} if isinstance(entry, str) else _fields(entry, shown(path))
        yield Line(number, {"file_name": name, **fields})


def _csv(path: Path) -> Lines:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)}: expected UTF-8 text; save it as UTF-8.") from None
    header = text.partition("\n")[0]
    delimiter = max("\t;|,", key=header.count)
    rows = _cells(path, text, delimiter)
    _, names = next(rows, (1, []))
    names = [_column(name) for name in names]
    if names and is_picture_or_clip(names[0]):  # no header
        rows, names = _cells(path, text, delimiter), NO_HEADER
        open_end = False
    else:
        open_end = len(names) == 2 and names[1] in CAPTION_COLUMNS
    used = [name for name in (*FILE_COLUMNS, *CAPTION_COLUMNS) if names.count(name) > 1]
    if used:
        raise DataError(f"{shown(path)}: has two columns {used[0]!r}; keep one of the two.")
    for number, row in rows:
        if row:
            yield _csv_line(path, number, names, row, delimiter if open_end else None)


def _csv_line(
    path: Path, number: int, names: Sequence[str], row: list[str], delimiter: str | None
) -> Line:
    """A row by its header.

    delimiter: joins what a row has too much to its last cell, which is a caption with commas; None
    where it may belong to another cell.
    """
    while len(row) > len(names) and not row[-1].strip():  # spreadsheets fill all rows up
        row.pop()
    if len(row) > len(names) and delimiter is not None:
        row = [*row[: len(names) - 1], delimiter.join(row[len(names) - 1 :])]
    cells = dict(zip(names, row, strict=False))
    if len(row) > len(names):
        file = next((cells[name] for name in FILE_COLUMNS if name in cells), "")
        error = DataError(
            f"{shown(path)} line {number}: has {len(row)} cells, and the table has {len(names)} "
            "columns; put a caption with a comma in double quotes, and name all columns in the "
            "first line."
        )
        return Line(number, error, file)
    return Line(number, {name: cells.get(name) for name in names})


def _cells(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the number of its first line.

    Quotes are plain text between tabs. Raises DataError for a quote that swallows rows.
    """
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    number = 1
    try:
        for row in rows:
            if any(_holds_row(cell, delimiter) for cell in row):
                raise DataError(
                    f"{shown(path)} line {number}: a double quote opens a cell that runs into the "
                    "next lines; write a quote inside a caption twice."
                )
            yield number, row
            number = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{shown(path)} line {number}: {error}; mend the table.") from None


def _holds_row(cell: str, delimiter: str) -> bool:
    """Whether a line inside a cell names a picture, and so is a row of its own."""
    lines = cell.splitlines()[1:]
    return any(
        is_picture_or_clip(part.strip(' "')) for line in lines for part in line.split(delimiter)
    )


def _parquet(path: Path) -> Lines:
    arrow: Any = require("pyarrow")
    parquet: Any = require("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path)
        known = (*FILE_COLUMNS, *CAPTION_COLUMNS)
        wanted = [n for n in table.schema_arrow.names if _column(n) in known]
        entries: Sequence[dict[str, object]] = table.read(columns=wanted).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{shown(path)}: cannot be read as Parquet ({shown(reason)}).") from None
    for number, entry in enumerate(entries, 1):
        fields = _fields(entry, shown(path))
        if isinstance(fields.get("image"), dict):
            raise DataError(
                f"{shown(path)}: holds its pictures inside; save them as files beside a "
                "metadata.jsonl."
            )
        yield Line(number, fields)
