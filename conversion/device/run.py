"""Runs the cells of a plan, one process each, into a result file; continues where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bundle.folder import Bundle
from .cells import Cell
from .child import blank
from .machine import machine
from .results import Record, append, read_results

CHILD = (sys.executable, "-m", "mdm_apple.conversion.device.child")
ROOT = Path(__file__).parents[3]


def run_plan(
    cells: Sequence[Cell],
    bundles: Mapping[str, Bundle],
    out: Path,
    *,
    cache: Path,
    limit_minutes: float,
    say: Callable[[str], None] = lambda _: None,
    child: Sequence[str] = CHILD,
) -> list[Record]:
    """Measure the cells that the file does not have yet for this machine; returns new records.

    Args:
        bundles: by digest. cache: for compiled packages. limit_minutes: per cell.
    Raises ResultError if the file cannot be read or written.
    """
    done = _done(out)
    left = [cell for cell in cells if cell.id not in done]
    if len(left) < len(cells):
        say(f"{len(cells) - len(left)} of {len(cells)} cells are already in {out}")
    new: list[Record] = []
    for number, cell in enumerate(left, 1):
        say(f"cell {number} of {len(left)}: {cell.id}")
        record = _run(cell, bundles[cell.digest], cache, limit_minutes, child)
        append(out, record)
        new.append(record)
        if record["reason"]:
            say(f"{record['status']}: {record['reason']}")
        for violation in record["violations"]:
            say(f"doubtful: {violation}")
    return new


def _done(out: Path) -> set[str]:
    """Cells that this machine and system have already tried, with any outcome."""
    if not out.exists() or out.stat().st_size == 0:
        return set()
    here = _fingerprint(machine())
    return {r["id"] for r in read_results(out) if _fingerprint(r["machine"]) == here}


def _fingerprint(machine: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(machine[key] for key in ("system", "os_version", "model", "chip"))


def _run(
    cell: Cell, bundle: Bundle, cache: Path, limit_minutes: float, child: Sequence[str]
) -> Record:
    asked = {"cell": asdict(cell), "bundle": str(bundle.path.absolute()), "cache": str(cache)}
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        child,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
    )
    try:
        stdout, stderr = process.communicate(json.dumps(asked), timeout=60 * limit_minutes)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        reason = f"took longer than {limit_minutes:g} minutes and was stopped"
        return blank(cell, bundle) | {"status": "timed out", "reason": reason}
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        reason = f"its process was killed by {name}"
        if name == "SIGKILL":
            reason += ", as happens when memory runs out"
        return blank(cell, bundle) | {"status": "killed", "reason": reason}
    if process.returncode:
        last = (stderr.strip().splitlines() or ["no output"])[-1]
        reason = f"its process failed with exit code {process.returncode} ({last})"
        return blank(cell, bundle) | {"status": "failed", "reason": reason}
    return json.loads(stdout.splitlines()[-1])
