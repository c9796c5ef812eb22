"""`mdm inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mdm_apple import api
from mdm_apple.bundled_models import NamedModel, find_bundle, find_model
from mdm_apple.cli.model_options import preset_option
from mdm_apple.cli.output import Output, filling, output_options
from mdm_apple.config.presets import preset
from mdm_apple.errors import MdmError, require, require_coreai, require_installed
from mdm_apple.storage.model_folder import load_model_config

if TYPE_CHECKING:
    from mdm_apple.conversion.inspect.asset import AssetContents
    from mdm_apple.conversion.inspect.inspect import Inspection, LevelSize, PackageCensus
    from mdm_apple.conversion.inspect.package import PackageContents

TWO_BUNDLES = "--beside compares two bundles, so make one with mdm convert or leave --beside out"


@dataclass(frozen=True)
class InspectRequest:
    """The options of `mdm inspect`."""

    model: str | None
    preset_name: str | None
    beside: str | None


@click.command(
    epilog="""\b
Examples:
  mdm inspect Classifier.mlpackage
  mdm inspect emoji.bundle --beside emoji-gpu.bundle
"""
)
@click.argument("model", required=False, metavar="[NAME]")
@preset_option
@click.option(
    "--beside",
    metavar="BUNDLE",
    help="Another bundle to compare package by package, such as the same model with other layers.",
)
@output_options
@filling(InspectRequest)
def command(request: InspectRequest, output: Output) -> None:
    """Show parameters, sizes and operations of a model, a bundle or anybody's package.

    NAME is a model folder, a bundle, or a .mlpackage, .mlmodel or .aimodel. Of the last three it
    shows inputs, outputs, operations and the sizes of the weights; of Core ML, what mdm run does
    not know, and of Core AI, what would keep it off the Neural Engine.
    """
    if request.beside is not None and request.model is None:
        raise MdmError("beside: compares two bundles; give the first one as well.")
    if (request.model is None) == (request.preset_name is None):
        raise MdmError("give either a model folder, a bundle, or --preset.")
    if request.model is not None and request.beside is None and _is_package(Path(request.model)):
        path = Path(request.model)
        if path.suffix == ".aimodel":
            asset = _asset(path)
            output.result(asset.as_json(), _asset_text(asset))
        else:
            contents = _package(path)
            output.result(contents.as_json(), _package_text(contents))
        return
    if request.model is None:
        found = _preset(str(request.preset_name))
    elif request.beside is None:
        found = _inspected(find_model(request.model))
    else:
        pair = [find_bundle(name, TWO_BUNDLES) for name in (request.model, request.beside)]
        found, other = map(_inspected, pair)
        text = _side_by_side(found, other)
        output.result(found.as_json() | {"beside": other.as_json()}, text)
        return
    output.result(found.as_json(), _text(found))


def _is_package(path: Path) -> bool:
    kinds = (".mlpackage", ".mlmodel", ".mlmodelc", ".aimodel")
    return path.suffix in kinds and path.exists()


def _asset(path: Path) -> AssetContents:
    require_coreai()
    require_installed("torch")
    from mdm_apple.conversion.inspect.asset import inspect_asset

    return inspect_asset(path)


def _asset_text(asset: AssetContents) -> str:
    found = asset.census
    lines = [f"{asset.name}: Core AI, functions {', '.join(found.functions)}"]
    lines += [f"input {name}: {kind}" for name, kind in found.inputs.items()]
    lines += [f"output {name}: {kind}" for name, kind in found.outputs.items()]
    lines.append(f"{sum(found.operations.values()):,} operations: {_counts(found.operations)}")
    lines.append(f"results: {_counts(found.computed)}")
    lines.append(f"weights: {_megabytes(found.stored)}")
    lines.append(
        f"{found.parameters:,} parameters; {found.compressed_weights} weights compressed, "
        f"{found.plain_weights} plain"
    )
    lines += [
        f"{rule.name} {found.findings[rule.name]} ({rule.severity}): {rule.reason} [{rule.source}]"
        for rule in asset.rules
    ]
    lines += [f"{size:>12,} {name}" for name, size in asset.files.items()]
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


def _megabytes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {n / 1e6:.2f} MB" for kind, n in sizes.items()) or "none in files"


def _package(path: Path) -> PackageContents:
    require_installed("torch", "coremltools")
    from mdm_apple.conversion.inspect.package import inspect_package

    return inspect_package(path)


def _package_text(found: PackageContents) -> str:
    what = "ML program" if found.stages == 1 else f"pipeline of {found.stages} ML programs"
    lines = [f"{found.name}: {what}, specification {found.spec_version}"]
    if len(found.functions) > 1:
        lines.append(f"functions {', '.join(found.functions)}")
    lines += [f"input {name}: {kind}" for name, kind in found.inputs.items()]
    lines += [f"output {name}: {kind}" for name, kind in found.outputs.items()]
    lines.append(f"{sum(found.operations.values()):,} operations: {_counts(found.operations)}")
    if found.unknown:
        lines.append(f"not known to mdm run: {', '.join(found.unknown)}")
    lines.append("mdm run takes it" if found.refusal is None else f"mdm run: {found.refusal}")
    lines.append(f"weights: {_megabytes(found.weights)}")
    lines += [f"{size:>12,} {name}" for name, size in found.weight_files.items()]
    return "\n".join(lines)


def _preset(name: str) -> Inspection:
    require("torch")
    from mdm_apple.conversion.inspect.inspect import inspect_config

    return inspect_config(name, preset(name))


def _inspected(named: NamedModel) -> Inspection:
    if named.is_bundle:
        bundle = api.open_bundle(named.path)
        from mdm_apple.conversion.inspect.inspect import inspect_bundle

        return inspect_bundle(bundle)
    config = load_model_config(named.path)
    require("torch")
    from mdm_apple.conversion.inspect.inspect import inspect_config

    return inspect_config(Path(named.name).name, config, named.path)


def _level(level: LevelSize) -> str:
    if level.frames == 1:
        return f"{level.parameters:,}"
    return f"{level.frames} frames of {level.frame_side} px, {level.parameters:,}"


def _text(found: Inspection) -> str:
    lines = [f"{found.name}: {found.parameters:,} parameters"]
    lines += [f"  level {level.side}: {_level(level)}" for level in found.levels]
    if found.fps is not None:
        lines.append(f"  clips: {found.fps:g} frames a second")
    if found.text_encoder_parameters is not None:
        lines.append(f"  text encoder: {found.text_encoder_parameters:,}")
    if found.text is not None:
        whole = found.text.padding == "max_tokens"
        padding = "all" if whole else "up to the longest caption of a picture"
        null = "the end token" if found.text.null_prompt == "end" else "a space and the end token"
        lines.append(
            f"  captions: up to {found.text.max_tokens} tokens; padding seen: {padding}; "
            f"empty caption: {null}"
        )
    if found.variant:
        lines.append(f"variant {found.variant}")
    for package in found.packages:
        lines.append(
            f"{package.path}: {package.bytes / 1e6:.2f} MB, {package.parameters:,} parameters, "
            f"{package.precision}, weights {package.weight_bits} bit, activations "
            f"{package.activation_bytes / 1e6:.2f} MB, runs per {package.phase}"
        )
        operations = _counts(package.operations)
        lines.append(f"  {sum(package.operations.values())} operations: {operations}")
        lines.append(f"  {_cost_text(package)}")
        if package.stored is not None and package.computed is not None:
            lines.append(f"  results: {_counts(package.computed)}")
            lines.append(
                f"  weights: {_megabytes(package.stored)}; {package.compressed_weights} "
                f"compressed, {package.plain_weights} plain"
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


def _cost_text(package: PackageCensus) -> str:
    if package.flops is None or package.traffic is None or package.estimated_ms is None:
        return "GFLOP, traffic and times: not counted for Core AI"
    times = ", ".join(f"{chip} {ms:.1f} ms" for chip, ms in package.estimated_ms.items())
    return (
        f"{package.flops / 1e9:.2f} GFLOP, {package.traffic / 1e6:.0f} MB of traffic; "
        f"estimated, not measured: {times}"
    )


def _side_by_side(found: Inspection, other: Inspection) -> str:
    """The packages of both bundles, with a row per number and the first bundle on the left."""
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
            _row("GFLOP", [None if p.flops is None else round(p.flops / 1e9, 2) for p in pair]),
            _row(
                "traffic, MB", [None if p.traffic is None else round(p.traffic / 1e6) for p in pair]
            ),
            _row("activations, MB", [round(p.activation_bytes / 1e6, 2) for p in pair]),
            _row("lint errors", [p.errors for p in pair]),
        ]
        rules = dict.fromkeys([*pair[0].findings, *pair[1].findings])
        lines += [_row(f"  {rule}", [p.findings.get(rule, 0) for p in pair]) for rule in rules]
    lines += [f"{name}: only in {other.name}" for name in others]
    return "\n".join(lines)


def _row(label: str, values: Sequence[float | None]) -> str:
    shown = ["not counted" if value is None else f"{value:,}" for value in values]
    return f"  {label:30}" + "".join(f"{value:>16}" for value in shown)
