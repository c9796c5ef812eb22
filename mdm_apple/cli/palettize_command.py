"""`mdm palettize`."""

from __future__ import annotations

from typing import Any

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, output_options, overwrite_option
from mdm_apple.errors import require


@click.command(
    epilog="""\b
Examples:
  mdm palettize emoji.bundle --bits 4 --out emoji-4.bundle
  mdm palettize emoji.bundle --bits 6 --group 16 --out emoji-6.bundle
"""
)
@click.argument("bundle", type=FOLDER)
@click.option(
    "--bits",
    type=click.Choice(["8", "6", "4", "3", "2", "int8", "int4"]),
    required=True,
    help="Palettes of 2^bits values, or int8 per channel, or int4 per block of 32.",
)
@click.option(
    "--group",
    type=click.IntRange(1),
    metavar="N",
    help="Output channels that share a palette. Default: the whole weight.",
)
@click.option(
    "--protect-ends/--no-protect-ends",
    default=True,
    show_default=True,
    help="Leave first and last convolutions at 16 bits.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Default: as many as there are processors and work for.",
)
@click.option("--out", type=FOLDER, required=True, metavar="BUNDLE2")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Compress the weights of a bundle; those that cannot take the setting are named."""
    output = Output(options["as_json"], options["quiet"])
    require("torch")
    require("jsonschema")
    from conversion.bundle import Bundle
    from conversion.palettize import palettize
    from conversion.plan import Setting

    _, report = palettize(
        Bundle.open(options["bundle"]),
        options["out"],
        Setting.parse(options["bits"], options["group"]),
        options["protect_ends"],
        options["overwrite"],
        output.say,
        options["processes"],
    )
    kept = [w for w in report.weights if w.reason]
    for weight in kept:
        output.say(f"16 bits: {weight.package} {weight.name} ({weight.reason})")
    output.result(
        report.as_json() | {"bundle": str(options["out"])},
        f"{options['out']}\n"
        f"{report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, "
        f"{len(report.weights) - len(kept)} weights compressed, {len(kept)} at 16 bits, "
        f"{report.variant}",
    )
