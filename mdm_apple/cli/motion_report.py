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
    lines = ["share of clips that move as they were asked to (95 % interval; by chance)"]
    for row, some in scores.rows.items():
        lines.append(f"  {row}, {some['motion'].count} clips")
        lines += [f"    {name:7} {share_line(share)}" for name, share in some.items()]
    steady = scores.steadiness
    gaps = ", ".join(f"{gap:.3f}" for gap in scores.consistency)
    return "\n".join(
        [
            *lines,
            f"change between frames {steady.change:.2f}, flicker {steady.flicker:.2f} (1 is right)",
            f"white background {100 * steady.white_share:.1f} %",
            f"levels differ by {gaps} (RMSE, of -1 to 1)",
            f"FD-pca64 {scores.frechet:.1f}",
        ]
    )
