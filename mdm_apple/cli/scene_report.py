"""`mdm evaluate --data scenes`: what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdm_apple.evaluation.scene_scores import Share

Rows = Mapping[str, Mapping[str, Share]]


def scene_values(rows: Rows) -> dict[str, Any]:
    """The scores as JSON: row, then factor."""
    return {
        row: {name: _values(share) for name, share in some.items()} for row, some in rows.items()
    }


def scene_text(rows: Rows) -> str:
    """The scores for a person: one line per row, with the factors below it."""
    lines = ["share of pictures that show what was asked (95 % interval; by chance)"]
    for row, some in rows.items():
        main = "all" if "all" in some else "top5"
        lines.append(f"  {row:20} {_line(some[main])}, {some[main].count} pictures")
        lines += [f"    {name:18} {_line(share)}" for name, share in some.items() if name != main]
    return "\n".join(lines)


def _values(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {
        "share": share.share,
        "low": low,
        "high": high,
        "hits": share.hits,
        "count": share.count,
        "chance": share.chance,
    }


def _line(share: Share) -> str:
    percent, low, high, chance = (100 * n for n in (share.share, *share.interval, share.chance))
    return f"{percent:5.1f} % ({low:.1f} to {high:.1f}; {chance:.1f})"
