"""`mdm doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from mdm_apple.cli.model_options import FILE, Number
from mdm_apple.cli.output import Output, filling, output_options
from mdm_apple.errors import require_installed


@dataclass(frozen=True)
class DoctorRequest:
    """The options of `mdm doctor`."""

    results: Path
    psnr: float


@click.command(
    epilog="""\b
Examples:
  mdm doctor mac.jsonl
  mdm doctor mac.jsonl --psnr 30 --json
"""
)
@click.argument("results", type=FILE, metavar="RESULT.jsonl")
@click.option(
    "--psnr",
    type=Number(0, 200),
    default=20,
    show_default=True,
    metavar="DB",
    help="Lowest PSNR to accept, against the network's pictures; 0 admits bundles without one.",
)
@output_options
@filling(DoctorRequest)
def command(request: DoctorRequest, output: Output) -> None:
    """Read what mdm bench device measured; say which format, layout, variant and unit to ship.

    Units that fell back to the CPU, cells that failed and poor pictures are named and left out.
    Results of a stand-in prove the harness only, so they lead to no recommendation.
    """
    require_installed("torch", "jsonschema")
    from mdm_apple.conversion.device.doctor import advise
    from mdm_apple.conversion.device.results import read_results

    advice = advise(read_results(request.results), request.psnr)
    best = advice.best
    lines = [advice.reason if best is None else f"Ship {best.name}: {advice.reason}"]
    output.result(advice.as_json(), "\n".join([*lines, *advice.notes]))
