"""`mdm inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdm_apple.cli.model_options import FOLDER, preset_option
from mdm_apple.cli.output import Output, output_options
from mdm_apple.errors import MdmError, require

if TYPE_CHECKING:
    from mdm_apple.conversion.inspect.inspect import Inspection


@click.command(
    epilog="""\b
Examples:
  mdm inspect --preset mdm1024
  mdm inspect emoji.bundle --beside emoji-gpu.bundle
"""
)
@click.argument("path", type=FOLDER, required=False, metavar="[DIR|BUNDLE]")
@preset_option
@click.option(
    "--beside",
    type=FOLDER,
    metavar="BUNDLE",
    help="Another bundle, package by package: the model with other layers, say.",
)
@output_options
def command(**options: Any) -> None:
    """Parameters, sizes and operations of a model or a bundle."""
    output = Output(options["as_json"], options["quiet"])
    path: Path | None = options["path"]
    if (path is None) == (options["preset_name"] is None):
        raise MdmError("give either a model folder, a bundle, or --preset.")
    if options["beside"] is not None and path is None:
        raise MdmError("beside: compares two bundles; give the first one as well.")
    require("torch")
    from mdm_apple.config.presets import preset
    from mdm_apple.conversion.bundle.folder import Bundle, is_bundle
    from mdm_apple.conversion.inspect.inspect import inspect_bundle, inspect_config
    from mdm_apple.storage.model_folder import load_model_config

    if path is None:
        found = inspect_config(options["preset_name"], preset(options["preset_name"]))
    elif is_bundle(path) or options["beside"] is not None:
        require("jsonschema")
        found = inspect_bundle(Bundle.open(path))
    else:
        found = inspect_config(path.name, load_model_config(path), path)
    data, text = found.as_json(), _text(found)
    if options["beside"] is not None:
        other = inspect_bundle(Bundle.open(options["beside"]))
        data, text = data | {"beside": other.as_json()}, _side_by_side(found, other)
    output.result(data, text)


def _text(found: Inspection) -> str:
    lines = [f"{found.name}: {found.parameters:,} parameters"]
    lines += [f"  level {level.side}: {level.parameters:,}" for level in found.levels]
    if found.text_encoder_parameters is not None:
        lines.append(f"  text encoder: {found.text_encoder_parameters:,}")
    if found.variant:
        lines.append(f"variant {found.variant}")
    for package in found.packages:
        lines.append(
            f"{package.path}: {package.bytes / 1e6:.2f} MB, {package.parameters:,} parameters, "
            f"{package.precision}, weights {package.weight_bits} bit, activations "
            f"{package.activation_bytes / 1e6:.2f} MB, runs per {package.phase}"
        )
        census = [f"{kind} {count}" for kind, count in package.operations.items()]
        lines.append(f"  {sum(package.operations.values())} operations: {', '.join(census)}")
        times = ", ".join(f"{chip} {ms:.1f} ms" for chip, ms in package.estimated_ms.items())
        lines.append(
            f"  {package.flops / 1e9:.2f} GFLOP, {package.traffic / 1e6:.0f} MB of traffic; "
            f"estimated, not measured: {times}"
        )
        rules = ", ".join(f"{rule} {n}" for rule, n in package.findings.items()) or "none"
        meant = "" if package.for_neural_engine else " (not meant for it)"
        lines.append(f"  Neural Engine lint{meant}: {rules}")
        lines += [f"    {f.rule}: {f.operation}, {f.detail}" for f in package.first_errors]
        if package.cuts:
            cut = package.cuts[0]
            lines.append(
                f"  best cut: after {cut.operation}, {100 * cut.share:.0f} % of the weights, "
                f"{cut.tensors} tensors of {cut.crossing_bytes / 1e6:.2f} MB"
            )
    lines += [f"{r.name} ({r.severity}): {r.reason} [{r.source}]" for r in found.rules]
    if (peak := found.peak_memory) is not None:
        lines.append(
            f"predicted peak memory: all resident {peak.resident / 1e6:.0f} MB, by phase "
            f"{peak.staged / 1e6:.0f} MB, one at a time {peak.minimal / 1e6:.0f} MB"
        )
    origin = found.provenance
    said = {"licence": origin.license, "source": origin.source, "made from": origin.base_model}
    lines.append(", ".join(f"{what}: {text or 'not stated'}" for what, text in said.items()))
    lines += [f"{size:>12,} {name}" for name, size in found.files.items()]
    return "\n".join(lines)


def _side_by_side(found: Inspection, other: Inspection) -> str:
    """Packages that both bundles have, a row per number, the first bundle's on the left."""
    others = {package.name: package for package in other.packages}
    lines = [f"{'':32}{found.name:>16.16}{other.name:>16.16}"]
    for package in found.packages:
        if package.name not in others:
            lines.append(f"{package.name}: only in {found.name}")
            continue
        pair = (package, others.pop(package.name))
        lines.append(package.name)
        lines += [
            _row("operations", [sum(p.operations.values()) for p in pair]),
            _row("GFLOP", [round(p.flops / 1e9, 2) for p in pair]),
            _row("traffic, MB", [round(p.traffic / 1e6) for p in pair]),
            _row("activations, MB", [round(p.activation_bytes / 1e6, 2) for p in pair]),
            _row("lint errors", [p.errors for p in pair]),
        ]
        rules = dict.fromkeys([*pair[0].findings, *pair[1].findings])
        lines += [_row(f"  {rule}", [p.findings.get(rule, 0) for p in pair]) for rule in rules]
    lines += [f"{name}: only in {other.name}" for name in others]
    return "\n".join(lines)


def _row(label: str, values: Sequence[float]) -> str:
    return f"  {label:30}" + "".join(f"{value:>16,}" for value in values)
