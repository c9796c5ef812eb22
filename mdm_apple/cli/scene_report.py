"""`mdm evaluate --data scenes`: what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdm_apple.cli.share_report import share_line, share_values
from mdm_apple.evaluation.share import Share

Rows = Mapping[str, Mapping[str, Share]]


def scene_values(rows: Rows) -> dict[str, Any]:
    """The scores as JSON: row, then factor."""
    return {
        row: {name: share_values(share) for name, share in some.items()}
        for row, some in rows.items()
    }


def scene_text(rows: Rows) -> str:
    """The scores for a person: one line per row, with the factors below it."""
    lines = ["share of pictures that show what was asked (95 % interval; by chance)"]
    for row, some in rows.items():
        main = "all" if "all" in some else "top5"
        lines.append(f"  {row:20} {share_line(some[main])}, {some[main].count} pictures")
        lines += [f"    {name:18} {share_line(one)}" for name, one in some.items() if name != main]
    return "\n".join(lines)
