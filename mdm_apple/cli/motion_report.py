"""`mdm evaluate --data motion`: what it reports."""

from __future__ import annotations

import dataclasses
from typing import Any

from mdm_apple.cli.share_report import share_line, share_values
from mdm_apple.evaluation.evaluate_motion import MotionScores


def motion_values(scores: MotionScores) -> dict[str, Any]:
    """The scores as JSON."""
    rows = {
        row: {name: share_values(share) for name, share in some.items()}
        for row, some in scores.rows.items()
    }
    return {
        "rows": rows,
        **dataclasses.asdict(scores.steadiness),
        "consistency": scores.consistency,
        "fd_pca64": scores.frechet,
    }


def motion_text(scores: MotionScores) -> str:
    """The scores for a person: one block per row, then what all clips have in common."""
    steady = scores.steadiness
    moves = steady.change is not None
    asked = "move as they were asked to" if moves else "show the object that was asked for"
    lines = [f"share of clips that {asked} (95 % interval; by chance)"]
    for row, some in scores.rows.items():
        lines.append(f"  {row}, {next(iter(some.values())).count} clips")
        lines += [f"    {name:7} {share_line(share)}" for name, share in some.items()]
    if moves:
        lines.append(
            f"change between frames {steady.change:.2f}, flicker {steady.flicker:.2f} (1 is right)"
        )
    lines.append(f"white background {100 * steady.white_share:.1f} %")
    if scores.consistency:
        gaps = ", ".join(f"{gap:.3f}" for gap in scores.consistency)
        lines.append(f"levels differ by {gaps} (RMSE, of -1 to 1)")
    return "\n".join([*lines, f"FD-pca64 {scores.frechet:.1f}"])
