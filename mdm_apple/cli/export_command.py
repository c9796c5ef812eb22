"""`mdm export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click

from mdm_apple.bundled_models import find_folder
from mdm_apple.cli.model_options import FOLDER, Number
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
    renamed,
)
from mdm_apple.config.model import Provenance
from mdm_apple.sampling.pictures import Precision
from mdm_apple.sampling.settings import SamplingDefaults
from mdm_apple.sampling.walk import SamplerKind
from mdm_apple.training.export import export_model


@dataclass(frozen=True)
class ExportRequest:
    """The options of `mdm export`; None: as in the model folder."""

    model: str
    out: Path
    precision: Precision
    license: str | None
    source: str | None
    notes: str | None
    sampler: SamplerKind | None
    steps: int | None
    guidance: float | None
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm export runs/emoji --license CC-BY-4.0 --source twemoji --out emoji
  mdm export runs/tuned --precision bf16 --sampler dpmpp --steps 20 --guidance 4 --out tuned
"""
)
@click.argument("model", metavar="NAME")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Model folder to make.")
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp16",
    show_default=True,
    help="Number type of the stored weights.",
)
@click.option("--license", metavar="TEXT", help="Licence under which the model may be used.")
@click.option("--source", metavar="TEXT", help="Where the data or the weights come from.")
@click.option("--notes", metavar="TEXT", help="What else users of the model should know.")
@click.option(
    "--sampler",
    type=click.Choice(get_args(SamplerKind)),
    help="Sampler that suits the model. It becomes the default, like --steps and --guidance.",
)
@click.option("--steps", type=click.IntRange(1), help="Network evaluations that suit the model.")
@click.option("--guidance", type=Number(-100, 100), help="Guidance scale that suits the model.")
@renamed("--dtype", "--precision")
@overwrite_option
@output_options
@filling(ExportRequest)
def command(request: ExportRequest, output: Output) -> None:
    """Write a trained model for shipping: averaged weights only, in 16 bits.

    The new folder has no optimiser state and no history. It can be sampled and converted, and
    --init can start from it. The sampling settings that suit the model go into sampling.json.
    """
    folder = find_folder(request.model).path
    out = request.out
    refuse_existing(out, request.overwrite)
    export_model(
        folder,
        out,
        Provenance(request.license, request.source, notes=request.notes),
        request.precision,
        SamplingDefaults(request.sampler, request.steps, request.guidance),
    )
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    output.result({"out": str(out), "bytes": size}, f"{out}: {size / 1e6:.1f} MB.")
