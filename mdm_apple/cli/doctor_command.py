"""`mdm doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from mdm_apple.cli.output import Output, output_options
from mdm_apple.errors import require_installed


@click.command(
    epilog="""\b
Examples:
  mdm doctor mac.jsonl
  mdm doctor mac.jsonl --psnr 30 --json
"""
)
@click.argument("results", type=click.Path(path_type=Path, dir_okay=False), metavar="RESULT.jsonl")
@click.option(
    "--psnr",
    type=click.FloatRange(0, 200),
    default=20,
    show_default=True,
    metavar="DB",
    help="Least PSNR of the pictures against the network's; 0: even where it was not measured.",
)
@output_options
def command(results: Path, psnr: float, as_json: bool, quiet: bool) -> None:
    """Read what mdm bench device measured; say which layout, variant and compute unit to ship.

    Units that fell back to the CPU, cells that failed and poor pictures are named and left out.
    Results of the executor prove the harness only, so nothing is recommended from them.
    """
    require_installed("torch", "jsonschema")
    from mdm_apple.conversion.device.doctor import advise
    from mdm_apple.conversion.device.results import read_results

    advice = advise(read_results(results), psnr)
    best = advice.best
    lines = [advice.reason if best is None else f"Ship {best.name}: {advice.reason}"]
    Output(as_json, quiet).result(advice.as_json(), "\n".join([*lines, *advice.notes]))
