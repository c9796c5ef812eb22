"""`mdm palettize`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, output_options, overwrite_option
from mdm_apple.errors import require


@click.command(
    epilog="""\b
Examples:
  mdm palettize emoji.bundle --bits 4 --out emoji-4.bundle
  mdm palettize emoji.bundle --bits 8 --no-protect-ends --out emoji-8.bundle
"""
)
@click.argument("bundle", type=FOLDER)
@click.option("--bits", type=click.Choice(["8", "6", "4", "2"]), required=True)
@click.option(
    "--protect-ends/--no-protect-ends",
    default=True,
    show_default=True,
    help="Leave first and last convolutions at 16 bits.",
)
@click.option("--out", type=FOLDER, required=True, metavar="BUNDLE2")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Compress the weights of a bundle to tables of 2^bits values, one table per tensor."""
    output = Output(options["as_json"], options["quiet"])
    require("torch")
    require("jsonschema")
    from conversion.bundle import Bundle
    from conversion.palettize import palettize

    _, report = palettize(
        Bundle.open(options["bundle"]),
        options["out"],
        int(options["bits"]),
        options["protect_ends"],
        options["overwrite"],
        output.say,
    )
    kept = [w for w in report.weights if w.reason]
    for weight in kept:
        output.say(f"16 bits: {weight.package} {weight.name} ({weight.reason})")
    output.result(
        asdict(report) | {"bundle": str(options["out"])},
        f"{options['out']}\n"
        f"{report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, "
        f"{len(report.weights) - len(kept)} weights at {report.bits} bits, {len(kept)} at 16",
    )
