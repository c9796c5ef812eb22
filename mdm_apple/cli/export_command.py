"""`mdm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.config.model import Provenance
from mdm_apple.training.export import export_model


@click.command(
    epilog="""\b
Examples:
  mdm export runs/emoji --license CC-BY-4.0 --source twemoji --out emoji
  mdm export runs/tuned --dtype bfloat16 --out tuned
"""
)
@click.argument("model", type=FOLDER, metavar="DIR")
@click.option("--out", type=FOLDER, required=True, help="Model folder to make.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Of the weights on disk.",
)
@click.option("--license", "license_name", metavar="TEXT", help="Under which it may be used.")
@click.option("--source", metavar="TEXT", help="Where data or weights come from.")
@click.option("--notes", metavar="TEXT", help="What else its users should know.")
@overwrite_option
@output_options
def command(model: Path, **options: Any) -> None:
    """Averaged weights alone, in 16 bits: a trained model as one ships it.

    The new folder has no optimiser and no history; it samples, converts, and --init starts from it.
    """
    output = Output(options["as_json"], options["quiet"])
    out: Path = options["out"]
    refuse_existing(out, options["overwrite"])
    said = Provenance(options["license_name"], options["source"], notes=options["notes"])
    export_model(model, out, said, options["dtype"])
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    output.result({"out": str(out), "bytes": size}, f"{out}: {size / 1e6:.1f} MB.")
