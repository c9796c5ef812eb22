"""Result files: results/<system>_<processor>/<suite>.json, checked against result.schema.json.

A row that is measured again replaces the old one; git keeps the history.
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

from mdm_apple.errors import MdmError, require
from mdm_apple.storage.files import atomic_file

HERE = Path(__file__).parent
RESULTS = HERE / "results"

Rows = list[dict[str, Any]]


def machine_name(machine: dict[str, Any]) -> str:
    """Name of the folder for a machine's results."""
    return f"{machine['system']}_{machine['processor']}".lower()


def read(path: Path) -> Rows:
    """Rows of one file. Raises MdmError if it does not match the schema."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise MdmError(f"{path}: cannot be read; give a result file of mdm bench run.") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Rows:
    """Rows of a result file's text. Raises MdmError."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise MdmError(f"{where}: not valid JSON; give a result file of mdm bench run.") from None
    check(data, where)
    return data["rows"]


def check(data: Any, where: str) -> None:
    """Check a result file against its schema, and its summaries against its values.

    Raises MdmError.
    """
    jsonschema = require("jsonschema")
    error = next(jsonschema.Draft202012Validator(_schema()).iter_errors(data), None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        message = error.message if len(error.message) < 120 else error.message[:117] + "..."
        raise MdmError(f"{where}: {place} does not match the schema ({message}).")
    for row in data["rows"]:
        for side in ("ours", "other"):
            measured = row[side]
            if (
                measured
                and abs(statistics.median(measured["values"]) / measured["median"] - 1) > 1e-9
            ):
                raise MdmError(
                    f"{where}: {row['id']}: the median of {side} does not match its values."
                )


def write(folder: Path, rows: Rows) -> list[Path]:
    """Write rows to the files of their suites and machines below `folder`; returns the files."""
    by_file: dict[Path, Rows] = {}
    for row in rows:
        suite = row["id"].partition("/")[0]
        path = folder / machine_name(row["machine"]) / f"{suite}.json"
        by_file.setdefault(path, []).append(row)
    for path, new in by_file.items():
        old = read(path) if path.exists() else []
        ids = {row["id"] for row in new}
        kept = sorted([*(r for r in old if r["id"] not in ids), *new], key=lambda r: r["id"])
        data = {"schema": 1, "suite": path.stem, "rows": kept}
        check(data, str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write((json.dumps(data, indent=2) + "\n").encode())
    return list(by_file)


@cache
def _schema() -> dict[str, Any]:
    return json.loads((HERE / "result.schema.json").read_text(encoding="utf-8"))
