"""Plots ratios of medians. The same rows give the same bytes."""

from __future__ import annotations

import io

from benchmarks.store import Rows
from mdm_apple.errors import require

BETTER, WORSE, INK, LINE = "#0071e3", "#c7b299", "#1d1d1f", "#d2d2d7"


def draw(rows: Rows) -> bytes:
    """An SVG with one bar per row that has a peer; the line at 1 is the peer. Log scale."""
    picture = io.BytesIO()
    require("matplotlib").use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["ratio"] is not None][::-1]
    # text stays text, so that no font of this machine is embedded; a fixed salt makes the ids
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdm"}):
        figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.3 * max(1, len(shown))))
        ratios = [row["ratio"] for row in shown]
        colours = [BETTER if ratio <= 1 else WORSE for ratio in ratios]
        axes.barh(range(len(shown)), [r - 1 for r in ratios], left=1, color=colours, height=0.62)
        axes.set_xscale("log")
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [row["id"] for row in shown], fontsize=8, color=INK)
        ticks = [0.1, 0.25, 0.5, 1, 2, 4]
        low, high = min([*ratios, 0.5]) / 1.2, max([*ratios, 1.0]) * 1.4
        axes.set_xticks([t for t in ticks if low <= t <= high], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(low, high)
        for at, row in enumerate(shown):
            end = max(row["ratio"], 1.0)
            label = f" {row['ratio']:.2f} of {row['other_name']}"
            axes.text(end, at, label, va="center", fontsize=7, color=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False, color=LINE)
        axes.set_xlabel("ours over the other, medians", fontsize=8, color=INK)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return picture.getvalue()
