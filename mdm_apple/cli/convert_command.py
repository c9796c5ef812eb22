"""`mdm convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from mdm_apple import api
from mdm_apple.bundled_models import find_folder
from mdm_apple.cli.model_options import FOLDER, Number, preset_option
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing_bundle,
)
from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Compute, Format, Layout, Target, TextEncoderChoice
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.errors import MdmError

if TYPE_CHECKING:
    from mdm_apple.conversion.bundle.folder import Bundle


@dataclass(frozen=True)
class ConvertRequest:
    """The options of `mdm convert`."""

    model: str | None
    preset_name: str | None
    seed: int | None
    layout: Layout
    compute: Compute | None
    format: Format
    target: Target | None
    text_encoder: TextEncoderChoice
    max_package_mb: float
    out: Path
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm convert box:emoji --out emoji.bundle
  mdm convert box:emoji --format coreai --out emoji-coreai.bundle
"""
)
@click.argument("model", required=False, metavar="[NAME]")
@preset_option
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Seed of a preset's weights.")
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    default="nested",
    show_default=True,
    help="nested: a package for each pass down or up through a level. monolith: one package for "
    "all levels. multifunction: one package with a function for each side to stop at.",
)
@click.option(
    "--compute",
    type=click.Choice(get_args(Compute)),
    help="Layers for the Neural Engine, or those of training. Default: ane if nested, else gpu.",
)
@click.option(
    "--format",
    type=click.Choice(get_args(Format)),
    default="coreml",
    show_default=True,
    help="coreml: .mlpackage, for iOS 17 and later. coreai: .aimodel, for iOS 27 and macOS 27.",
)
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    help="Oldest system that can load the bundle (macOS 14, 15, 26, 27). Default: iOS18, or iOS27 "
    "for Core AI.",
)
@click.option(
    "--text-encoder",
    type=click.Choice(get_args(TextEncoderChoice)),
    default="auto",
    show_default=True,
    help="auto: pack an encoder that was trained with the model or is small. yes: pack a large one "
    "too. no: pack none.",
)
@click.option(
    "--max-package-mb",
    type=Number(0.001),
    default=1000,
    show_default=True,
    help="Split larger packages where the least data has to cross; Core AI's are refused.",
)
@click.option("--out", type=FOLDER, required=True, metavar="BUNDLE", help="Bundle to make.")
@overwrite_option
@output_options
@filling(ConvertRequest)
def command(request: ConvertRequest, output: Output) -> None:
    """Make a bundle from a model folder, or from a preset with random weights."""
    options = ConvertOptions(
        request.layout, request.target, request.compute, request.max_package_mb, request.format
    )
    if (request.model is None) == (request.preset_name is None):
        raise MdmError("give either a model folder or --preset.")
    if request.model is not None and request.seed is not None:
        raise MdmError("seed: makes the weights of a --preset; a model folder has its own.")
    if request.model is not None:
        find_folder(request.model, "mdm palettize makes a smaller bundle from it")
    refuse_existing_bundle(request.out, request.overwrite)
    if request.model is None:
        bundle = _from_preset(request, options, output.say)
    else:
        bundle = api.convert(
            request.model,
            request.out,
            options=options,
            text_encoder=request.text_encoder,
            overwrite=request.overwrite,
            say=output.say,
        )
    packages = {p.path: p.bytes for p in bundle.manifest.packages}
    lines = [f"{name}  {size / 1e6:.1f} MB" for name, size in packages.items()]
    output.result(
        {"bundle": str(request.out), "digest": bundle.manifest.digest, "packages": packages},
        "\n".join([str(request.out), *lines]),
    )


def _from_preset(request: ConvertRequest, options: ConvertOptions, say: api.Say) -> Bundle:
    config = preset(str(request.preset_name))
    trained = config.text is not None and config.text.trainable
    with_encoder = request.text_encoder == "yes" or (request.text_encoder == "auto" and trained)
    api.require_conversion(request.format)
    from mdm_apple.conversion.convert import convert
    from mdm_apple.conversion.layouts.text_encoder import missing_text
    from mdm_apple.conversion.source.model import random_source

    source = random_source(config, request.seed or 0, with_encoder)
    bundle = convert(source, request.out, options, request.overwrite, say)
    missing = missing_text(source)
    if missing is not None:
        say(missing)
    return bundle
