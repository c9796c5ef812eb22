"""RESULTS.md from results/*.json: `python -m benchmarks.report`. Nothing in it is typed by hand."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"


def render(results: Path) -> str:
    """The page made of every result file in the folder, in the order of their names."""
    parts = [
        "# Results\n",
        "Generated from `results/*.json` by `python -m benchmarks.report`. Ratios compare medians "
        "of runs taken in turn in one process; below 1 ours is faster. Nothing here was run on "
        "Apple hardware: not measured.\n",
    ]
    for path in sorted(results.glob("*.json")):
        parts.append(_section(path.stem, json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def _section(name: str, result: dict[str, Any]) -> str:
    machine = result["machine"]
    bf16 = "with" if machine["bf16_instructions"] else "without"
    lines = [
        f"## {name}\n",
        f"{machine['system']} {machine['processor']}, {machine['threads']} threads, {bf16} bf16 "
        f"instructions, Python {machine['python']}, torch {machine['torch']}.\n",
        f"`{result['command']}`\n",
        "| what | ours, s | compared with | its, s | ratio | largest difference | |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for pair in result["pairs"]:
        ours, other = (statistics.median(pair[key]) for key in ("ours_s", "other_s"))
        lines.append(
            f"| {pair['name']} | {ours:.3f} | {pair['other']} | {other:.3f} | {pair['ratio']:.2f} "
            f"| {pair['difference']:.1e} | {pair['note']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    RESULTS.write_text(render(HERE / "results"), encoding="utf-8")
