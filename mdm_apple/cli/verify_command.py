"""`mdm verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.errors import MdmError, require
from mdm_apple.storage.files import atomic_file

if TYPE_CHECKING:
    from mdm_apple.conversion.bundle.manifest import ComputeUnits
    from mdm_apple.conversion.verify.ladder import Rung
    from mdm_apple.conversion.verify.verify import VerifyReport


@click.command(
    epilog="""\b
Examples:
  mdm verify emoji.bundle --model runs/emoji
  mdm verify emoji-4.bundle --precision fp32 --floor 25 --json
"""
)
@click.argument("bundle", type=FOLDER)
@click.option("--model", type=FOLDER, metavar="DIR", help="Without it: the bundle's own record.")
@click.option(
    "--fp16",
    type=FOLDER,
    metavar="BUNDLE",
    help="What a compressed bundle was made from: compared with it as well.",
)
@click.option(
    "--runtime",
    type=click.Choice(["reference", "coreml"]),
    default="reference",
    show_default=True,
    help="This project's executor, or Core ML itself (macOS).",
)
@click.option(
    "--compute-units",
    multiple=True,
    type=click.Choice(["all", "cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"]),
    help="Of Core ML, one report each; all four by default.",
)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
@click.option("--prompts", type=click.IntRange(1, 8), default=8, show_default=True)
@click.option(
    "--floor",
    type=click.FloatRange(0, 200),
    metavar="DB",
    help="Least PSNR. Default: 60 for fp16 weights, 30, 20, 8, 4, 0 for 8, 6, 4, 3, 2 bits.",
)
@click.option(
    "--ranges",
    type=FILE,
    metavar="F.json",
    help="Also write the largest magnitude of every computed value, and how many were not finite.",
)
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Prove a bundle against the model it came from; exit 1 below a floor.

    With --model: the network in layers for the Neural Engine, the packages, and guided pictures,
    each against the network. PSNR of predictions is 20 log10(largest |value| / RMSE), the worst
    prompt per level and noise; that of pictures has a peak of 2.
    """
    output = Output(options["as_json"], options["quiet"])
    if options["compute_units"] and options["runtime"] != "coreml":
        raise MdmError("compute-units: are those of Core ML; add --runtime coreml.")
    if options["ranges"] is not None:
        refuse_existing(options["ranges"], options["overwrite"])
    require("torch")
    require("jsonschema")
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.run.coreml import UNITS, core_ml
    from mdm_apple.conversion.verify.verify import VerifyOptions, verify

    chosen: Sequence[ComputeUnits | None] = [None]
    if options["runtime"] == "coreml":
        chosen = options["compute_units"] or UNITS
    reports: list[VerifyReport] = []
    for units in chosen:
        load = None if units is None else core_ml(units)
        asked = VerifyOptions(
            options["precision"],
            options["prompts"],
            options["floor"],
            ladder=True,
            fp16=None if options["fp16"] is None else Bundle.open(options["fp16"]),
            load=load,
            compute_units=units,
            say=output.say,
        )
        reports.append(verify(Bundle.open(options["bundle"]), options["model"], asked))
    if options["ranges"] is not None:
        _write_ranges(options["ranges"], reports)
    data = [report.as_json() for report in reports]
    result = data[0] if chosen == [None] else {"compute_units": data}
    output.result(result, "\n\n".join(map(_table, reports)))
    if not all(report.passed for report in reports):
        raise SystemExit(1)


def _write_ranges(path: Path, reports: Sequence[VerifyReport]) -> None:
    """By compute units or precision, then package, in the order of computation."""
    data = {
        report.compute_units or report.precision: {
            package: [asdict(value) for value in values]
            for package, values in report.values.items()
        }
        for report in reports
    }
    with atomic_file(path) as file:
        file.write(json.dumps(data, indent=1).encode())


def _table(report: VerifyReport) -> str:
    prompts = "1 prompt" if report.prompts == 1 else f"{report.prompts} prompts"
    where = f"on {report.compute_units}" if report.compute_units else f"in {report.precision}"
    lines = [
        f"{report.variant} {where}, against the {report.reference}, {prompts}",
        " side     t     PSNR      SNR",
        *(f"{r.side:5d} {r.t:5d} {r.psnr:8.2f} {r.snr:8.2f}" for r in report.rows),
        *(f"picture {side}: {value:.2f} dB" for side, value in report.picture_psnr.items()),
    ]
    for r in report.ranges:
        bad = f", NOT FINITE from {r.first_nonfinite}" if r.first_nonfinite else ""
        lines.append(f"{r.package}: largest value {r.largest:.4g} in {r.operation}{bad}")
    for rung in report.rungs:
        lines += _rung_lines(rung)
    demanded = "no floor" if report.floor is None else f"floor {report.floor:g} dB"
    verdict = "passed" if report.passed else "FAILED"
    lines.append(f"{verdict}: worst {report.worst:.2f} dB, {demanded}")
    return "\n".join(lines)


def _rung_lines(rung: Rung) -> list[str]:
    floors = {"": rung.floor, "pictures ": rung.picture_floor}
    demanded = [f"{what}floor {f:g} dB" for what, f in floors.items() if f is not None]
    verdict = "passed" if rung.passed else "FAILED"
    return [
        f"{rung.candidate}, against the {rung.reference}: {verdict}, "
        f"{', '.join(demanded) or 'no floor'}",
        *(f"{r.side:5d} {r.t:5d} {r.psnr:8.2f} {r.snr:8.2f}" for r in rung.rows),
        *(f"picture {side}: {value:.2f} dB" for side, value in rung.picture_psnr.items()),
    ]
