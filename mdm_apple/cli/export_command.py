"""`mdm export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click

from mdm_apple.bundled_models import find_model
from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
    renamed,
)
from mdm_apple.config.model import Provenance
from mdm_apple.errors import MdmError
from mdm_apple.sampling.settings import SamplingDefaults
from mdm_apple.sampling.walk import SamplerKind
from mdm_apple.storage.tensorfile import Storage
from mdm_apple.training.export import export_model

STORED: dict[str, Storage] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class ExportRequest:
    """The options of `mdm export`."""

    model: str
    out: Path
    precision: Literal["fp16", "bf16", "fp32"]
    license_name: str | None
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
  mdm export runs/tuned --sampler dpmpp --steps 20 --guidance 3 --out tuned
"""
)
@click.argument("model", metavar="NAME")
@click.option("--out", type=FOLDER, required=True, help="Model folder to make.")
@click.option(
    "--precision",
    type=click.Choice(list(STORED)),
    default="fp16",
    show_default=True,
    help="Number type of the weights on disk.",
)
@click.option("--license", "license_name", metavar="TEXT", help="Terms under which it may be used.")
@click.option("--source", metavar="TEXT", help="Where data or weights come from.")
@click.option("--notes", metavar="TEXT", help="What else its users should know.")
@click.option("--sampler", type=click.Choice(get_args(SamplerKind)), help="Sampler that suits it.")
@click.option("--steps", type=click.IntRange(1), help="Number of steps that suits it.")
@click.option("--guidance", type=float, help="Guidance scale that suits it.")
@renamed("--dtype", "--precision")
@overwrite_option
@output_options
@filling(ExportRequest)
def command(request: ExportRequest, output: Output) -> None:
    """Averaged weights alone, in 16 bits: a trained model as one ships it.

    The new folder has no optimiser and no history; it samples, converts, and --init starts from it.
    What suits the model is kept in sampling.json, and mdm sample uses it unless told otherwise.
    """
    named = find_model(request.model)
    if named.is_bundle:
        raise MdmError(f"{named}: is a bundle; give the model folder that it came from.")
    refuse_existing(request.out, request.overwrite)
    said = Provenance(request.license_name, request.source, notes=request.notes)
    suited = SamplingDefaults(request.sampler, request.steps, request.guidance)
    export_model(named.path, request.out, said, STORED[request.precision], suited)
    size = sum(file.stat().st_size for file in request.out.iterdir() if file.is_file())
    output.result({"out": str(request.out), "bytes": size}, f"{request.out}: {size / 1e6:.1f} MB.")
