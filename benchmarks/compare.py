"""Compares two sets of results and finds what became slower.

Rows with a peer are compared by their ratio to it, which does not depend on how fast or busy the
machine is. Rows without a peer are compared in seconds, and only on the same kind of machine.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.store import HERE, Rows, machine_name, parse, read
from mdm_apple.errors import MdmError


@dataclass(frozen=True)
class Change:
    """factor: the new number over the old one; above 1 is worse. basis: what was compared."""

    id: str
    factor: float
    basis: Literal["ratio", "median"]
    worse: bool


def compare(old: Rows, new: Rows, tolerance: float) -> list[Change]:
    """Compare the rows that both sets have with the same peer.

    A row is worse if its factor exceeds 1 by more than the tolerance (0.1 is 10 %).
    """
    before = {(machine_name(row["machine"]), row["id"]): row for row in old}
    changes: list[Change] = []
    for row in new:
        was = before.get((machine_name(row["machine"]), row["id"]))
        if was is None or row["other_name"] != was["other_name"]:
            continue
        if row["ratio"] and was["ratio"]:
            factor = row["ratio"] / was["ratio"]
            changes.append(Change(row["id"], factor, "ratio", factor > 1 + tolerance))
        elif _kind(row) == _kind(was):
            factor = row["ours"]["median"] / was["ours"]["median"]
            changes.append(Change(row["id"], factor, "median", factor > 1 + tolerance))
    return changes


def as_json(changes: Sequence[Change], tolerance: float) -> dict[str, Any]:
    return {
        "tolerance": tolerance,
        "worse": [c.id for c in changes if c.worse],
        "rows": [asdict(c) for c in changes],
    }


def rows_at(path: Path) -> Rows:
    """Rows of a result file, or of all files below a folder. Raises MdmError if there are none."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise MdmError(f"{path}: holds no results; make some with mdm bench run --out {path}.")
    return [row for file in files for row in read(file)]


def committed_rows() -> Rows:
    """Rows of the last commit. Raises MdmError outside a git checkout."""
    names = _git("ls-tree", "-r", "--name-only", "HEAD", "results/").split()
    files = [name for name in names if name.endswith(".json")]
    return [row for n in files for row in parse(_git("show", f"HEAD:./{n}"), f"HEAD:{n}")]


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=HERE)
    except (OSError, subprocess.CalledProcessError):
        raise MdmError("compare: git has no committed results here; give two paths.") from None
    return done.stdout


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    machine = row["machine"]
    return row["unit"], row["basis"], machine["chip"], machine["cores"], machine["threads"]
