"""`report.html`: one self-contained page about a run of `mdm demo`.

Input: pictures, curves and tables as plain values. Output: a page without any outside file.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.config.model import Provenance
from mdm_apple.errors import require
from mdm_apple.storage.files import atomic_file

TEMPLATE = Path(__file__).with_name("report.html")
INK, ACCENTS = "#1d1d1f", ("#0a66d6", "#e4572e", "#2e9e5b", "#8f5bd6")


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline: its task, its duration, its result."""

    name: str
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Variant:
    """One bundle: its size, and how close its predictions are to the network's, worst level."""

    name: str
    megabytes: float
    packages: dict[str, float]  # MB by name
    psnr_by_side: dict[int, float]  # dB, worst noise level and prompt
    picture_psnr: float  # dB, of a finished picture
    picture: NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Proof:
    """One package in both formats: how near each is to torch and to the other, in dB."""

    package: str
    executor: float  # our executor on the Core ML package, against torch
    apple: float  # Apple's runtime on the Core AI package, against torch
    each_other: float


@dataclass(frozen=True)
class Report:
    """The contents of the page."""

    prompts: list[str]
    gallery: list[list[NDArray[np.uint8]]]  # per prompt: the real picture, then levels upwards
    strips: list[tuple[str, NDArray[np.uint8]]]  # prompt, levels as rows and steps as columns
    sides: list[int]  # lowest first
    stages: list[Stage]
    metrics: list[dict[str, Any]]  # lines of metrics.jsonl
    variants: list[Variant]
    pictures: int
    steps: int
    parameters: int
    machine: str
    provenance: Provenance  # as stated in the bundle
    proofs: list[Proof]  # empty where Apple's runtime is not installed


def write_report(report: Report, path: Path) -> None:
    """Render the page and write it atomically."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page: str = template.render(
        report=report,
        picture=as_png,
        loss_plot=_plot(_draw_loss, report),
        size_plot=_plot(_draw_sizes, report),
        total=sum(stage.seconds for stage in report.stages),
    )
    with atomic_file(path) as file:
        file.write(page.encode("utf-8"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_png(pixels: NDArray[np.uint8]) -> str:
    """A picture (H, W, 3) as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plot(draw: Any, report: Report) -> str:
    matplotlib = require("matplotlib")
    matplotlib.use("svg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.subplots()
    draw(axes, report)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    encoded = base64.b64encode(text[text.index("<svg") :].encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def _draw_loss(axes: Any, report: Report) -> None:
    lines = [m for m in report.metrics if "level_losses" in m]
    steps = [m["step"] + 1 for m in lines]
    for k, side in enumerate(reversed(report.sides)):
        values: Sequence[float] = [m["level_losses"][k] for m in lines]
        axes.plot(steps, values, color=ACCENTS[k % len(ACCENTS)], label=f"{side} px", lw=1.8)
    axes.set_xlabel("step")
    axes.set_ylabel("squared error of v")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def _draw_sizes(axes: Any, report: Report) -> None:
    for variant in report.variants:
        worst = min(variant.psnr_by_side.values())
        axes.plot(variant.megabytes, worst, "o", color=ACCENTS[0], ms=8)
        axes.annotate(
            variant.name,
            (variant.megabytes, worst),
            textcoords="offset points",
            xytext=(7, -4),
            color=INK,
        )
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("bundle, MB")
    axes.set_ylabel("worst PSNR of predictions, dB")
