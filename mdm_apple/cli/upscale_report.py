"""Scores of enlarged pictures as text and as values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.evaluation.evaluate_upscale import UpscaleEvaluation
from mdm_apple.sampling.pictures import enlarge, tile

GRID_COLUMNS, GRID_SIDE = 4, 64


def upscale_values(found: UpscaleEvaluation) -> dict[str, Any]:
    """The scores of each seed, and their mean."""
    each = [dataclasses.asdict(scores) for scores in found.scores.values()]
    return {
        "features": "details: handcrafted, 48 numbers",
        "mean": {name: float(np.mean([one[name] for one in each])) for name in each[0]},
        "seeds": dict(zip(map(str, found.scores), each, strict=True)),
    }


def upscale_text(report: dict[str, Any]) -> str:
    """The mean over seeds in words."""
    mean, settings = report["mean"], report["settings"]
    return (
        f"{settings['count']} pictures per seed from {settings['side']} px, {len(report['seeds'])} "
        "seeds: this model (bicubic)\n"
        f"  to the real ones {mean['psnr']:.2f} dB ({mean['bicubic_psnr']:.2f} dB)\n"
        f"  detail distance  {mean['detail']:.4f} ({mean['bicubic_detail']:.4f})\n"
        f"  pools back       within {mean['pools_back']:.2f}/255"
    )


def triples(shown: list[tuple[Pixels, Pixels, Pixels]]) -> Pixels:
    """Real, bicubic and enlarged pictures side by side."""
    cells = [enlarge(np.concatenate(three, axis=1), GRID_SIDE) for three in shown]
    return tile(np.stack(cells), columns=min(GRID_COLUMNS, len(cells)), gap=6)
