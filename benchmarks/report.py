"""Makes RESULTS.md and its plots from results/ (`mdm bench report`); nothing is typed by hand."""

from __future__ import annotations

import statistics
import string
from pathlib import Path
from typing import Any

from benchmarks.harness import LEAST
from benchmarks.plots import draw
from benchmarks.run import amount, spread
from benchmarks.store import HERE, RESULTS, Rows, read
from benchmarks.suites import ENTRIES, SUITES, Entry
from mdm_apple.conversion.device.results import read_results
from mdm_apple.conversion.device.table import table as device_table

PAGE = HERE / "RESULTS.md"
HEAD = """# Results

Generated from `results/` by `mdm bench report`. A ratio below 1 means that ours takes less. Ratios
compare medians; unless a row says otherwise, the two sides run in turn in one process after a
warm-up. Brackets hold the interquartile range. Peak memory is the peak of the row's process. A
letter names the run: machine, versions, commit. CHECKOUT is a checkout of apple/ml-mdm, called the
original here; without it a plain eager network stands in.
[How to read and repeat this](../docs/benchmarks.md).
"""
NO_DEVICE = """## On a device

Latency, memory and placement on Apple hardware: not measured. On a Mac,
`mdm bench device BUNDLE --out RESULT.jsonl` measures them and `mdm doctor RESULT.jsonl` reads them.
"""


def made_of(results: Path) -> dict[str, bytes]:
    """The page and one plot per machine, by name relative to this folder."""
    files = {PAGE.name: render(results).encode()}
    for folder in machines(results):
        files[f"plots/{folder.name}.svg"] = draw(rows_of(folder))
    return files


def stale_files() -> list[Path]:
    """Files that differ from what the results produce."""
    made = {HERE / name: data for name, data in made_of(RESULTS).items()}
    return [p for p, data in made.items() if not p.is_file() or p.read_bytes() != data]


def write_all() -> None:
    """Write the page and the plots."""
    for name, data in made_of(RESULTS).items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_bytes(data)


def machines(results: Path) -> list[Path]:
    """One folder per machine, in name order."""
    return sorted(p for p in results.iterdir() if any(p.glob("*.json")))


def rows_of(folder: Path) -> Rows:
    return [row for path in sorted(folder.glob("*.json")) for row in read(path)]


def render(results: Path) -> str:
    """The page of every result file in the folder."""
    parts = [HEAD]
    for folder in machines(results):
        parts.append(_machine_section(folder.name, rows_of(folder)))
    device = sorted(results.glob("device/*.jsonl"))
    parts += [device_table(path.stem, read_results(path)) for path in device] or [NO_DEVICE]
    return "\n".join(parts)


def _machine_section(name: str, rows: Rows) -> str:
    letters: dict[str, str] = {}
    for row in rows:
        letters.setdefault(_run_of(row), "")
    for index, run in enumerate(letters):
        letters[run] = _letter(index)
    by_id = {row["id"]: row for row in rows}
    lines = [f"## {name}\n", f"![Ratios of the medians](plots/{name}.svg)\n"]
    for suite in SUITES:
        lines += [
            f"### {suite}\n",
            "| what | ours | compared with | its | ratio | difference | peak memory | more | run "
            "| repeat by |",
            "|---|---:|---|---:|---:|---:|---:|---|---|---|",
        ]
        for entry in (e for e in ENTRIES if e.suite == suite):
            lines.append(_line(entry, by_id.get(entry.id), letters))
        lines.append("")
    lines.append("Runs:\n")
    lines += [f"- **{letter}**: {run}" for run, letter in letters.items()]
    return "\n".join(lines) + "\n"


def _line(entry: Entry, row: dict[str, Any] | None, letters: dict[str, str]) -> str:
    if row is None:
        return f"| {entry.what} | not measured | | | | | | | | `{entry.command}` |"
    cells = [row["name"], _amounts(row["ours"], row), row["other_name"] or ""]
    other, ratio = row["other"], row["ratio"]
    cells.append("" if other is None else _amounts(other, row))
    cells.append("" if ratio is None else f"{ratio:.2f}")
    cells.append("" if row["difference"] is None else f"{row['difference']:.1e}")
    peak = row["peak_bytes"]
    cells.append("not measured" if peak is None else amount(peak, "bytes"))
    more = [f"{name} {value:.4g}" for name, value in row["figures"].items()]
    more += [row["note"]] if row["note"] else []
    beside = "MDM_REFERENCE=CHECKOUT " if row["other_name"] == "original" else ""
    count = len(row["ours"]["values"])
    often = "" if count == LEAST else f" --repetitions {count}"
    cells += [", ".join(more), letters[_run_of(row)], f"`{beside}{entry.command}{often}`"]
    return f"| {' | '.join(cells)} |"


def _amounts(measured: dict[str, Any], row: dict[str, Any]) -> str:
    """Median, interquartile range, 95th percentile if there is one, and median CPU seconds."""
    unit = row["unit"]
    text = spread(measured, unit)
    if measured["p95"] is not None:
        text += f", p95 {amount(measured['p95'], unit)}"
    cpu = measured["cpu_seconds"]
    if cpu is None or row["basis"] == "cpu":  # those are already CPU seconds
        return text
    return f"{text}, CPU {amount(statistics.median(cpu), 's')}"


def _run_of(row: dict[str, Any]) -> str:
    machine = row["machine"]
    libraries = ", ".join(f"{name} {found}" for name, found in machine["libraries"].items())
    bf16 = {True: "with", False: "without", None: "unknown"}[machine["bf16_instructions"]]
    memory = machine["memory_bytes"]
    known = {
        "system version": f"{machine['system']} {machine['os_version']}",
        "chip": f"{machine['processor']} {machine['chip']}",
        "cores": f"{machine['cores']} cores",
        "memory": f"{(memory or 0) / 2**30:.0f} GiB",
        "commit": f"commit {row['commit']}",
    }
    values = (machine["os_version"], machine["chip"], machine["cores"], memory, row["commit"])
    missing = [name for name, value in zip(known, values, strict=True) if value is None]
    stated = [text for name, text in known.items() if name not in missing]
    stated += [f"{machine['system']} {machine['processor']}"] if "chip" in missing else []
    stated += [f"{machine['threads']} threads", f"{bf16} bf16 instructions"]
    text = f"{', '.join(stated)}; Python {machine['python']}, {libraries}"
    return f"{text}; not recorded: {', '.join(missing)}" if missing else text


def _letter(index: int) -> str:
    letters = string.ascii_lowercase
    return letters[index] if index < 26 else letters[index // 26 - 1] + letters[index % 26]
