"""`mdm bench run|report|compare|device`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from mdm_apple import api
from mdm_apple.apple_system import core_ai_chooses_units
from mdm_apple.bundled_models import find_bundle, require_format
from mdm_apple.cli.model_options import FILE, FOLDER, Number
from mdm_apple.cli.output import Output, filling, output_options
from mdm_apple.config.types import ComputeUnits, ExecutorPrecision
from mdm_apple.errors import MdmError, require_installed

if TYPE_CHECKING:
    from benchmarks.suites import Entry
    from mdm_apple.conversion.device.cells import Cell, Units

# in the order in which they are measured
UNITS: tuple[ComputeUnits, ...] = ("cpuAndNeuralEngine", "cpuAndGPU", "all", "cpuOnly")


@dataclass(frozen=True)
class RunRequest:
    """The options of `mdm bench run`."""

    suites: tuple[str, ...]
    short: bool
    repetitions: int
    out: Path | None
    only_list: bool


@dataclass(frozen=True)
class ReportRequest:
    """The options of `mdm bench report`."""

    check: bool


@dataclass(frozen=True)
class CompareRequest:
    """The options of `mdm bench compare`."""

    paths: tuple[Path, ...]
    tolerance: float


@dataclass(frozen=True)
class DeviceRequest:
    """The options of `mdm bench device`."""

    bundles: tuple[str, ...]
    out: Path | None
    only_plan: bool
    steps: tuple[int, ...]
    guided: bool
    compute_units: tuple[ComputeUnits, ...]
    package_repetitions: int
    picture_repetitions: int
    precision: ExecutorPrecision
    limit_minutes: float


@click.group(
    epilog="""\b
Examples:
  mdm bench run training --out out/bench
  mdm bench device emoji.bundle --out mac.jsonl

Each of the four has --help with examples, --json and --quiet.
"""
)
def command() -> None:
    """Measure, and make tables of the results.

    run, report and compare belong to a checkout; device works wherever mdm is installed.
    """


@command.command(
    "run",
    epilog="""\b
Examples:
  mdm bench run sampling/forward-64-fp32 training
  mdm bench run --short --out out/bench
""",
)
@click.argument("suites", nargs=-1, metavar="[SUITE|SUITE/ROW]...")
@click.option("--short", is_flag=True, help="Measure only the short set.")
@click.option(
    "--repetitions",
    type=click.IntRange(5, 1000),
    default=5,
    show_default=True,
    help="Measurements per row.",
)
@click.option("--out", type=FOLDER, metavar="DIR", help="Write the rows to files below DIR.")
@click.option("--list", "only_list", is_flag=True, help="List what would be measured, then stop.")
@output_options
@filling(RunRequest)
def run(request: RunRequest, output: Output) -> None:
    """Measure suites or single rows; each row is a process of its own. Exit 1 if one failed.

    MDM_REFERENCE=CHECKOUT measures beside the networks of that checkout of apple/ml-mdm; without
    it a plain eager network stands in. To keep the numbers, write to --out benchmarks/results and
    run mdm bench report.
    """
    _checkout()
    from benchmarks.suites import entries_of

    entries = entries_of(request.suites, request.short)
    if request.only_list:
        _list(entries, output)
        return
    require_installed("torch", "jsonschema")
    from benchmarks import run as running
    from benchmarks.store import write

    rows, failed, lines = [], {}, []
    for entry, found in running.run(entries, request.repetitions, output.say):
        if isinstance(found, str):
            failed[entry.id] = found
            lines.append(f"{entry.id:26} not measured: {found}")
            output.say(lines[-1])
        else:
            rows.append(found)
            lines.append(running.line(found))
            output.say(lines[-1])
            if request.out is not None:  # at once, so that an interruption loses nothing
                write(request.out, [found])
    output.result({"rows": rows, "not_measured": failed}, "\n".join(lines))
    if failed:
        raise SystemExit(1)


def _list(entries: list[Entry], output: Output) -> None:
    rows = [{"id": e.id, "minutes": e.minutes, "missing": e.missing()} for e in entries]
    total = f"about {sum(e.minutes for e in entries):.0f} minutes on two idle cores"
    lines = [f"{e.minutes:5.1f} min  {e.id:28}{e.missing() or ''}" for e in entries]
    output.result({"rows": rows}, "\n".join([*lines, total]))


@command.command(
    "report",
    epilog="""\b
Examples:
  mdm bench report
  mdm bench report --check
""",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if anything would change.")
@output_options
@filling(ReportRequest)
def report(request: ReportRequest, output: Output) -> None:
    """Make benchmarks/RESULTS.md and its plots from benchmarks/results, always the same bytes."""
    _checkout()
    require_installed("torch", "jsonschema", "matplotlib")
    from benchmarks import report as reporting

    stale = reporting.stale_files()
    if not request.check:
        reporting.write_all()
    names = [str(path) for path in stale]
    said = "would change" if request.check else "changed"
    output.result({"changed": names}, "\n".join(f"{said}: {n}" for n in names) or "up to date")
    if request.check and stale:
        raise SystemExit(1)


@command.command(
    "compare",
    epilog="""\b
Examples:
  mdm bench compare out/bench
  mdm bench compare old/training.json new/training.json --tolerance 0.05
""",
)
@click.argument(
    "paths", nargs=-1, required=True, metavar="[OLD] NEW", type=click.Path(path_type=Path)
)
@click.option(
    "--tolerance",
    type=Number(0, 10),
    default=0.15,
    show_default=True,
    help="Fraction by which a row may become slower.",
)
@output_options
@filling(CompareRequest)
def compare(request: CompareRequest, output: Output) -> None:
    """Say what became slower between two files or folders of results; exit 1 if anything did.

    With one path, compare with the last commit. Rows with a peer are compared by their ratio to it.
    """
    if not 1 <= len(request.paths) <= 2:
        raise MdmError(f"compare: expected one or two paths, got {len(request.paths)}.")
    for path in request.paths:
        if not path.exists():
            raise MdmError(f"{path}: no such file or folder; give results of mdm bench run --out.")
    *given, newest = request.paths
    _checkout()
    require_installed("torch", "jsonschema")
    from benchmarks import compare as comparing

    old = comparing.rows_at(given[0]) if given else comparing.committed_rows()
    changes = comparing.compare(old, comparing.rows_at(newest), request.tolerance)
    if not changes and given:
        raise MdmError("compare: the two have no comparable row in common.")
    if not changes:
        output.say("nothing that can be compared with these is committed")
    lines = [
        f"{c.id:28} {c.basis} {c.factor:5.2f} of what it was{'  WORSE' if c.worse else ''}"
        for c in changes
    ]
    output.result(comparing.as_json(changes, request.tolerance), "\n".join(lines))
    if any(c.worse for c in changes):
        raise SystemExit(1)


@command.command(
    "device",
    epilog="""\b
Examples:
  mdm bench device emoji.bundle emoji-4.bundle --steps 1 --steps 4 --out mac.jsonl
  mdm bench device emoji.bundle --plan
""",
)
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--out", type=FILE, metavar="FILE.jsonl", help="File that cells are appended to.")
@click.option("--plan", "only_plan", is_flag=True, help="List cells and minutes, then stop.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    multiple=True,
    help="Steps per picture; may be repeated. Default: the bundle's.",
)
@click.option("--guided", is_flag=True, help="Two evaluations per step, for bundles that allow it.")
@click.option(
    "--compute-units",
    multiple=True,
    type=click.Choice(get_args(ComputeUnits)),
    help="Compute units of Core ML or Core AI; may be repeated. Default: all four.",
)
@click.option(
    "--package-repetitions",
    type=click.IntRange(30),
    default=30,
    show_default=True,
    help="Runs per package.",
)
@click.option(
    "--picture-repetitions",
    type=click.IntRange(10),
    default=10,
    show_default=True,
    help="Pictures of each kind.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(ExecutorPrecision)),
    default="fp16",
    show_default=True,
    help="Number type that the executor computes in.",
)
@click.option(
    "--limit-minutes",
    type=Number(0.01),
    default=60,
    show_default=True,
    help="End a cell that takes longer.",
)
@output_options
@filling(DeviceRequest)
def device(request: DeviceRequest, output: Output) -> None:
    """Measure bundles on this Mac: loads, latencies, memory, placement, quality, throttling.

    Elsewhere the executor stands in for Core ML, and the interpreter of Apple's wheels for Core AI;
    that proves this harness and says nothing about a device.
    Cells already in FILE are not measured again, so an interrupted measurement can continue.
    Exit 1 if a cell failed.
    """
    if not request.only_plan and request.out is None:
        raise MdmError("out: say where the cells go, or add --plan.")
    on_mac = sys.platform == "darwin"
    if request.compute_units and not (request.only_plan or on_mac):
        raise MdmError(
            "compute-units: need macOS; leave the option out to run what stands in for it."
        )
    for name in request.bundles:
        named = find_bundle(name)
        require_format(named.format)
        if on_mac and named.format == "coreai" and not core_ai_chooses_units():
            raise MdmError(
                f"{named}: Core AI is a part of macOS 27; measure it there, or leave it out."
            )
        if named.format == "coreai" and request.precision == "fp32":
            raise MdmError(
                f"precision: fp32 is for Core ML bundles without a Mac, and {named} is for Core "
                "AI; leave the option out."
            )
    from mdm_apple.conversion.device.cells import Demand, minutes, plan
    from mdm_apple.conversion.device.run import run_plan

    units: tuple[Units, ...] = request.compute_units or (UNITS if on_mac else ("executor",))
    bundles = [api.open_bundle(name) for name in request.bundles]
    demand = Demand(
        units,
        request.steps,
        request.guided,
        request.package_repetitions,
        request.picture_repetitions,
        precision=request.precision,
    )
    cells, by_digest = plan(bundles, demand), {b.manifest.digest: b for b in bundles}
    if request.out is None or request.only_plan:
        _show_plan([(cell, minutes(cell, by_digest[cell.digest])) for cell in cells], output)
        return
    if "executor" in units:
        output.say("no Apple system here: what stands in proves the harness only")
    records = run_plan(
        cells,
        by_digest,
        request.out,
        cache=Path.home() / "Library" / "Caches" / "mdm-apple",
        limit_minutes=request.limit_minutes,
        say=output.say,
    )
    failed = [record["id"] for record in records if record["status"] != "measured"]
    result = {"file": str(request.out), "cells": len(records), "failed": failed}
    output.result(result, f"{len(records)} cells measured, {len(failed)} failed: {request.out}")
    if failed:
        raise SystemExit(1)


def _show_plan(cells: list[tuple[Cell, float | None]], output: Output) -> None:
    """Name the cells in running order, each with its estimate or None."""
    lines = [
        f"{'not estimated' if m is None else f'{m:9.1f} min'}  {c.bundle}: {c.id}" for c, m in cells
    ]
    known = [m for _, m in cells if m is not None]
    rest = f", and {len(cells) - len(known)} not estimated" if len(known) < len(cells) else ""
    lines.append(
        f"{len(cells)} cells, about {sum(known):.0f} minutes{rest}, nothing measured"
        if known
        else f"{len(cells)} cells, not estimated, nothing measured"
    )
    found = [{"id": c.id, "minutes": m} for c, m in cells]
    output.result({"cells": found}, "\n".join(lines))


def _checkout() -> None:
    """Make `benchmarks` importable from the checkout beside mdm_apple, or refuse."""
    for root in (Path(__file__).parents[2], Path.cwd()):
        if (root / "benchmarks" / "suites.py").is_file():
            sys.path.insert(0, str(root))
            return
    raise MdmError(
        "bench: run, report and compare belong to a checkout of the project and are not in an "
        "installed mdm; clone it and run them in its folder."
    )
