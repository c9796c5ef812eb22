"""Measures rows one after another, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.original import VARIABLE, reference_path
from benchmarks.suites import Entry

ROOT = Path(__file__).parents[1]


def run(
    entries: Sequence[Entry], repetitions: int, say: Callable[[str], None]
) -> Iterator[tuple[Entry, dict[str, Any] | str]]:
    """The row of each entry, or the reason it was not measured."""
    with tempfile.TemporaryDirectory(prefix="mdm-bench-") as work:
        for entry in entries:
            reason = entry.missing()
            if reason is not None:
                yield entry, reason
                continue
            say(f"{entry.id}: about {entry.minutes:g} min")
            yield entry, _measured(entry, repetitions, Path(work))


def _measured(entry: Entry, repetitions: int, work: Path) -> dict[str, Any] | str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", entry.id, str(repetitions), str(work)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=_environment(),
    )
    if done.returncode < 0:
        return f"its process was killed by signal {-done.returncode}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """Our environment, adapted for a process that starts in the checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    checkout = reference_path()
    return environment if checkout is None else environment | {VARIABLE: str(checkout.resolve())}


def line(row: dict[str, Any]) -> str:
    """A measured row for a person."""
    text = f"{row['id']:26} {spread(row['ours'], row['unit'])}"
    if row["other"] is not None:
        text += f"  {row['other_name']} {spread(row['other'], row['unit'])}"
        text += f"  ratio {row['ratio']:.2f}"
    if row["difference"] is not None:
        text += f"  difference {row['difference']:.1e}"
    if row["peak_bytes"] is not None:
        text += f"  peak {amount(row['peak_bytes'], 'bytes')}"
    return text + "".join(f"  {name} {value:.4g}" for name, value in row["figures"].items())


def spread(measured: dict[str, Any], unit: str) -> str:
    """Median and, in brackets, the interquartile range."""
    return f"{amount(measured['median'], unit)} ({amount(measured['iqr'], unit)})"


def amount(value: float, unit: str) -> str:
    """A number with its unit, short enough for a table."""
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.3f} s" if value >= 0.1 else f"{1e3 * value:.2f} ms"
