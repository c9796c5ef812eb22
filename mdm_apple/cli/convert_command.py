"""`mdm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mdm_apple.cli.model_options import FOLDER, preset_option
from mdm_apple.cli.output import Output, output_options, overwrite_option
from mdm_apple.errors import MdmError, require, require_installed


@click.command(
    epilog="""\b
Examples:
  mdm convert runs/emoji --out emoji.bundle
  mdm convert --preset tiny --seed 0 --layout monolith --out tiny.bundle
"""
)
@click.argument("model", type=FOLDER, required=False, metavar="[DIR]")
@preset_option
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Random weights of a --preset.")
@click.option(
    "--layout",
    type=click.Choice(["nested", "monolith", "multifunction"]),
    default="nested",
    show_default=True,
    help="A package for each way down or up through a level; one for all levels; or one with a "
    "function per side to stop at.",
)
@click.option(
    "--compute",
    type=click.Choice(["ane", "gpu"]),
    help="Layers for the Neural Engine, or those of training. Default: ane if nested, else gpu.",
)
@click.option(
    "--target",
    type=click.Choice(["iOS17", "iOS18", "iOS26"]),
    default="iOS18",
    show_default=True,
    help="Oldest system that can load it (macOS 14, 15, 26).",
)
@click.option(
    "--text-encoder",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="auto: one that was trained with the model, or a small one. yes: a large one too.",
)
@click.option(
    "--max-package-mb",
    type=click.FloatRange(0.001),
    default=1000,
    show_default=True,
    help="Larger packages are split where the least passes on.",
)
@click.option("--out", type=FOLDER, required=True, metavar="BUNDLE")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Make a Core ML bundle from a model folder, or from a preset with random weights."""
    output = Output(options["as_json"], options["quiet"])
    model: Path | None = options["model"]
    if (model is None) == (options["preset_name"] is None):
        raise MdmError("give either a model folder or --preset.")
    if model is not None and options["seed"] is not None:
        raise MdmError("seed: makes the weights of a --preset; a model folder has its own.")
    require("torch")
    require("jsonschema")
    require_installed("coremltools")
    from mdm_apple.config.presets import preset
    from mdm_apple.conversion.convert import ConvertOptions, convert
    from mdm_apple.conversion.layouts.text_encoder import missing_text
    from mdm_apple.conversion.source.model import load_source, random_source

    encoder = options["text_encoder"]
    if model is not None:
        source = load_source(model, encoder)
    else:
        config = preset(options["preset_name"])
        trained = config.text is not None and config.text.trainable
        with_encoder = encoder == "yes" or (encoder == "auto" and trained)
        source = random_source(config, options["seed"] or 0, with_encoder)
    settings = ConvertOptions(
        options["layout"], options["target"], options["compute"], options["max_package_mb"]
    )
    bundle = convert(source, options["out"], settings, options["overwrite"], output.say)
    missing = missing_text(source)
    if missing is not None:
        output.say(missing)
    packages = {p.path: p.bytes for p in bundle.manifest.packages}
    lines = [f"{name}  {size / 1e6:.1f} MB" for name, size in packages.items()]
    output.result(
        {"bundle": str(options["out"]), "digest": bundle.manifest.digest, "packages": packages},
        "\n".join([str(options["out"]), *lines]),
    )
