"""`mdm verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, output_options
from mdm_apple.errors import require

if TYPE_CHECKING:
    from conversion.verify import VerifyReport


@click.command(
    epilog="""\b
Examples:
  mdm verify emoji.bundle --model runs/emoji
  mdm verify emoji-4.bundle --precision fp32 --floor 25 --json
"""
)
@click.argument("bundle", type=FOLDER)
@click.option("--model", type=FOLDER, metavar="DIR", help="Without it: the bundle's own record.")
@click.option("--runtime", type=click.Choice(["reference"]), default="reference", show_default=True)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
@click.option("--prompts", type=click.IntRange(1, 8), default=8, show_default=True)
@click.option(
    "--floor",
    type=click.FloatRange(0, 200),
    metavar="DB",
    help="Least PSNR. Default: 60 for fp16 weights, none for compressed ones.",
)
@output_options
def command(**options: Any) -> None:
    """Prove a bundle against the model it came from; exit 1 below the floor.

    PSNR of predictions is 20 log10(largest |value| / RMSE), the worst prompt per level and noise.
    """
    output = Output(options["as_json"], options["quiet"])
    require("torch")
    require("jsonschema")
    from conversion.bundle import Bundle
    from conversion.verify import verify

    report = verify(
        Bundle.open(options["bundle"]),
        options["model"],
        precision=options["precision"],
        prompts=options["prompts"],
        floor=options["floor"],
        say=output.say,
    )
    output.result(report.as_json(), _table(report))
    if not report.passed:
        raise SystemExit(1)


def _table(report: VerifyReport) -> str:
    prompts = "1 prompt" if report.prompts == 1 else f"{report.prompts} prompts"
    lines = [
        f"{report.variant} in {report.precision}, against the {report.reference}, {prompts}",
        " side     t     PSNR      SNR",
        *(f"{r.side:5d} {r.t:5d} {r.psnr:8.2f} {r.snr:8.2f}" for r in report.rows),
        *(f"picture {side}: {value:.2f} dB" for side, value in report.picture_psnr.items()),
    ]
    for r in report.ranges:
        bad = f", NOT FINITE from {r.first_nonfinite}" if r.first_nonfinite else ""
        lines.append(f"{r.package}: largest value {r.largest:.4g} in {r.operation}{bad}")
    demanded = "no floor" if report.floor is None else f"floor {report.floor:g} dB"
    verdict = "passed" if report.passed else "FAILED"
    lines.append(f"{verdict}: worst {report.worst:.2f} dB, {demanded}")
    return "\n".join(lines)
