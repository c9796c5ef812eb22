"""`mdm verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from mdm_apple import api
from mdm_apple.apple_system import require_units
from mdm_apple.bundled_models import FORMATS, find_bundle, find_folder
from mdm_apple.cli.model_options import FILE, Number
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.config.types import ComputeUnits, ExecutorPrecision, VerifyRuntime
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import atomic_file

if TYPE_CHECKING:
    from mdm_apple.conversion.verify.ladder import Rung
    from mdm_apple.conversion.verify.verify import VerifyReport


@dataclass(frozen=True)
class VerifyRequest:
    """The options of `mdm verify`."""

    bundle: str
    model: str | None
    fp16: str | None
    against: str | None
    runtime: VerifyRuntime | None
    compute_units: tuple[ComputeUnits, ...]
    precision: ExecutorPrecision
    prompts: int
    floor: float | None
    ranges: Path | None
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm verify emoji.bundle --model box:emoji
  mdm verify emoji.bundle --against emoji-coreai.bundle
"""
)
@click.argument("bundle")
@click.option(
    "--model",
    metavar="NAME",
    help="Model folder that the bundle was made from. Default: use the record in the bundle.",
)
@click.option(
    "--fp16",
    metavar="BUNDLE",
    help="Also compare with this bundle, which the compressed one was made from.",
)
@click.option(
    "--against",
    metavar="BUNDLE",
    help="Also compare with the same model in the other format: the executor and Apple's runtime, "
    "package by package.",
)
@click.option(
    "--runtime",
    type=click.Choice(get_args(VerifyRuntime)),
    help="reference: this project's executor. coreml: Core ML itself (macOS). coreai: Apple's "
    "runtime for Core AI. Default: coreai for its bundles, else reference.",
)
@click.option(
    "--compute-units",
    multiple=True,
    type=click.Choice(get_args(ComputeUnits)),
    help="Compute units on a Mac, with one report each; may be repeated. Default: all four for "
    "Core ML, the system's choice for Core AI.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(ExecutorPrecision)),
    default="fp16",
    show_default=True,
    help="Number type to compute in. Core AI's packages are made once more for fp32, with --model.",
)
@click.option(
    "--prompts",
    type=click.IntRange(1, 8),
    default=8,
    show_default=True,
    help="Prompts to compare.",
)
@click.option(
    "--floor",
    type=Number(0, 200),
    metavar="DB",
    help="Lowest PSNR to accept. Default: 60 for fp16 weights, 50 in Core AI; 30, 20, 8, 4, 0 for "
    "8, 6, 4, 3, 2 bits.",
)
@click.option(
    "--ranges",
    type=FILE,
    metavar="F.json",
    help="Also write the largest magnitude of every computed value, and how many were not finite.",
)
@overwrite_option
@output_options
@filling(VerifyRequest)
def command(request: VerifyRequest, output: Output) -> None:
    """Prove a bundle against the model it came from; exit 1 below a floor.

    With --model, three things are compared with the network: its layers for the Neural Engine, the
    packages, and guided pictures. For Core AI, also each package with its part of the network. The
    PSNR of predictions is 20 log10(largest |value| / RMSE), for the worst prompt at each level and
    noise; the PSNR of pictures has a peak of 2.
    """
    _check(request)
    reports = _verify(request, output)
    if request.ranges is not None:
        _write_ranges(request.ranges, reports)
    data = [report.as_json() for report in reports]
    result = {"compute_units": data} if reports[0].compute_units else data[0]
    output.result(result, "\n\n".join(map(_table, reports)))
    if not all(report.passed for report in reports):
        raise SystemExit(1)


def _check(request: VerifyRequest) -> None:
    """Refuse options that do not go together, and names of the wrong kind."""
    bundle = find_bundle(request.bundle)
    runtime = request.runtime or bundle.runtime
    if (runtime == "coreai") != (bundle.format == "coreai"):
        fitting = "coreai" if bundle.format == "coreai" else "reference or coreml"
        raise MdmError(
            f"runtime: {bundle} holds {FORMATS[bundle.format]} packages, which run on {fitting}, "
            f"not {runtime}."
        )
    if request.compute_units and runtime == "reference":
        raise MdmError("compute-units: belong to Core ML; add --runtime coreml.")
    if runtime == "coreml" and sys.platform != "darwin":
        raise MdmError(
            "coreml: runs on macOS only; use reference, which runs a bundle on any system."
        )
    if request.compute_units and runtime == "coreai":
        require_units()
    if runtime == "coreai" and request.precision == "fp32" and request.model is None:
        raise MdmError(
            "precision: fp32 packages of Core AI are made from the model folder; add --model NAME."
        )
    for other in (request.fp16, request.against):
        if other is not None:
            find_bundle(other)
    if request.model is not None:
        find_folder(request.model, "give it first, as mdm verify BUNDLE, or as --fp16")
    if request.ranges is not None:
        refuse_existing(request.ranges, request.overwrite)


def _verify(request: VerifyRequest, output: Output) -> list[VerifyReport]:
    """One report, or one for each of Core ML's compute units."""
    bundle = api.open_bundle(request.bundle)
    fp16 = None if request.fp16 is None else api.open_bundle(request.fp16)
    against = None if request.against is None else api.open_bundle(request.against)
    from mdm_apple.conversion.coreai.runtime import AppleRuntime
    from mdm_apple.conversion.run.coreml import UNITS, core_ml
    from mdm_apple.conversion.verify.verify import VerifyOptions

    loaders = {"coreml": core_ml, "coreai": AppleRuntime}
    chosen: Sequence[ComputeUnits | None] = request.compute_units or [None]
    if request.runtime == "coreml":
        chosen = request.compute_units or UNITS
    reports: list[VerifyReport] = []
    for units in chosen:
        options = VerifyOptions(
            request.precision,
            request.prompts,
            request.floor,
            ladder=True,
            fp16=fp16,
            against=against,
            load=None if units is None else loaders[bundle.manifest.format](units),
            compute_units=units,
            say=output.say,
        )
        reports.append(api.verify(bundle, request.model, options))
    return reports


def _write_ranges(path: Path, reports: Sequence[VerifyReport]) -> None:
    """Write ranges by compute units or precision, then by package in the order of computation."""
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
    if not demanded:
        demanded = ["a floor for each"] if rung.parts else ["no floor"]
    verdict = "passed" if rung.passed else "FAILED"
    return [
        f"{rung.candidate}, against the {rung.reference}: {verdict}, {', '.join(demanded)}",
        *(f"{r.side:5d} {r.t:5d} {r.psnr:8.2f} {r.snr:8.2f}" for r in rung.rows),
        *(f"picture {side}: {value:.2f} dB" for side, value in rung.picture_psnr.items()),
        *(f"{p.psnr:8.2f}  {p.package}, floor {p.floor:g} dB ({p.output})" for p in rung.parts),
    ]
