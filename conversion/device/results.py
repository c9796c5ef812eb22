"""Result files: one cell per line, checked against result.schema.json, append-only."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from mdm_apple.errors import MdmError, require, system_reason

Record = dict[str, Any]

STAND_INS = (
    "executor",
    "interpreter",
)  # engines that prove the harness, and nothing about a device


class ResultError(MdmError):
    """A result file that cannot be read or written; one sentence says where."""


def read_results(path: Path) -> list[Record]:
    """Cells of a file: one per line, or a single object. Raises ResultError.

    A last line without a newline was cut short by an interruption; it is left out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ResultError(f"{path}: no such file; mdm bench device makes one.") from None
    except (OSError, UnicodeDecodeError):
        raise ResultError(f"{path}: cannot be read; give a file of mdm bench device.") from None
    single = _parsed(text)
    if isinstance(single, dict):
        return [_checked(single, f"{path}")]
    lines = text.split("\n")[:-1]
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            records.append(_checked(_parsed(line), f"{path}, line {number}"))
    if not records:
        raise ResultError(f"{path}: holds no cells; mdm bench device appends some.")
    return records


def append(path: Path, record: Record) -> None:
    """Add a cell, synced to disk on return. A torn last line is removed. Raises ResultError."""
    _checked(record, str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResultError(f"{path}: cannot be written; {system_reason(error)}") from None


def _cut_torn_line(file: BinaryIO) -> None:
    """Drop everything after the last newline, because a whole cell ends with one."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _checked(data: Any, where: str) -> Record:
    jsonschema = require("jsonschema")
    error = next(jsonschema.Draft202012Validator(schema()).iter_errors(data), None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        message = error.message if len(error.message) < 120 else error.message[:117] + "..."
        raise ResultError(f"{where}: {place} does not match the schema ({message}).")
    return data


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a cell; `mdm-generate bench` is tested against it as well."""
    return json.loads(Path(__file__).with_name("result.schema.json").read_text(encoding="utf-8"))
