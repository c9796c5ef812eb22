"""A bundle becomes a smaller one: weights of 2^bits values each, stored as indices into a table.

Enters: a bundle with fp16 weights. Leaves: a new bundle, and a report that names every weight that
kept its 16 bits and says why. Biases, norms and tables of positions are no weights here.
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.bundle import MANIFEST, Bundle, bundle_folder, finish_bundle
from conversion.coreml import quiet_coremltools
from conversion.describe import describe_package
from conversion.errors import ConversionError
from conversion.execute import Package
from conversion.execute.graph import BlobReference, Function, Operation
from conversion.kmeans import palette_of
from conversion.mlpackage import copy_package, seal_package

BITS = (8, 6, 4, 2)
MINIMUM_ELEMENTS = 2048  # below, the table of values costs as much as is saved
# operation -> the parameter that holds its weight
WEIGHTED = {
    "conv": "weight",
    "conv_transpose": "weight",
    "linear": "weight",
    "gather": "x",
    "matmul": "y",
}


@dataclass(frozen=True)
class WeightReport:
    """One weight of a package: bits it has now, and why it kept 16 if it did."""

    package: str
    name: str
    elements: int
    bits: int
    reason: str | None


@dataclass(frozen=True)
class PalettizeReport:
    """What happened to every weight, and the bytes of all packages before and after."""

    bits: int
    weights: tuple[WeightReport, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Weight:
    """A constant that one or more operations multiply with."""

    name: str
    elements: int
    users: tuple[str, ...]


def palettize(
    bundle: Bundle,
    out: Path,
    bits: int,
    protect_ends: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Bundle, PalettizeReport]:
    """Write a bundle whose weights have at most 2^bits different values per tensor.

    Args:
        bits: 8, 6, 4 or 2. protect_ends: leave the first and last convolutions of each level alone.

    Raises ConversionError when the bundle is compressed already or the setting is unknown.
    """
    if bits not in BITS:
        raise ConversionError(f"bits: expected one of {', '.join(map(str, BITS))}, got {bits}.")
    if any(p.weight_bits != 16 for p in bundle.manifest.packages):
        raise ConversionError(
            f"{bundle.path}: is compressed already ({bundle.manifest.variant}); start from the "
            "fp16 bundle, each compression adds its error."
        )
    weights: list[WeightReport] = []
    with bundle_folder(out, overwrite) as folder:
        _copy_the_rest(bundle, folder)
        packages = []
        for info in bundle.manifest.packages:
            say(f"{info.name}: {bits} bits")
            target = folder / info.path
            weights += compress_package(
                bundle.file(info.path), target, info.name, bits, protect_ends
            )
            license_text = bundle.manifest.provenance.license
            seal_package(target, info.name, license_text)
            packages.append(describe_package(folder, info.name, info.phase, bits))
        manifest = dataclasses.replace(
            bundle.manifest, variant=f"palettized-{bits}", packages=tuple(packages)
        )
        finish_bundle(folder, manifest)
    before = sum(p.bytes for p in bundle.manifest.packages)
    after = sum(p.bytes for p in packages)
    return Bundle.open(out), PalettizeReport(bits, tuple(weights), before, after)


def compress_package(
    source: Path, target: Path, package: str, bits: int, protect_ends: bool
) -> list[WeightReport]:
    """Write `source` to `target` with its weights compressed; what happened to each of them."""
    function = Package.open(source).function()
    ends = end_convolutions(function) if protect_ends else set[str]()
    chosen: list[Weight] = []
    reports: list[WeightReport] = []
    for weight in weights_of(function):
        reason = None
        if weight.elements < MINIMUM_ELEMENTS:
            reason = f"fewer than {MINIMUM_ELEMENTS} numbers"
        elif weight.name in ends:
            reason = "first or last convolution"
        if reason is None:
            chosen.append(weight)
        else:
            reports.append(WeightReport(package, weight.name, weight.elements, 16, reason))
    if not chosen:
        copy_package(source, target)
        return reports
    _apply(source, target, {w.name for w in chosen}, bits)
    made = Package.open(target).function()
    still_plain = {w.name for w in weights_of(made)}
    for weight in chosen:
        taken = weight.name not in still_plain
        reason = None if taken else "left as it was by coremltools"
        now = bits if taken else 16
        reports.append(WeightReport(package, weight.name, weight.elements, now, reason))
    return reports


def weights_of(function: Function) -> list[Weight]:
    """The fp16 constants that operations of WEIGHTED read as their weight."""
    constants = {o.outputs[0][0]: o for o in function.operations if o.kind == "const"}
    users: dict[str, list[str]] = {}
    for operation in function.operations:
        name = _weight_name(operation)
        if name is not None and name in constants and _is_stored(constants[name]):
            users.setdefault(name, []).append(operation.name)
    return [Weight(n, constants[n].outputs[0][1].count, tuple(u)) for n, u in users.items()]


def end_convolutions(function: Function) -> set[str]:
    """Weights of the convolutions nearest to each image that enters and each one that leaves.

    Images are the inputs and outputs with four dimensions, three of them channels.
    """
    kinds = dict(function.inputs)
    made_by: dict[str, Operation] = {}
    read_by: dict[str, list[Operation]] = {}
    for operation in function.operations:
        for name, kind in operation.outputs:
            made_by[name], kinds[name] = operation, kind
        for name in _computed(operation):
            read_by.setdefault(name, []).append(operation)

    def is_image(name: str) -> bool:
        shape = kinds[name].shape
        return len(shape) == 4 and shape[1] == 3

    ends: set[str] = set()
    for name in filter(is_image, function.inputs):
        ends |= _nearest(name, lambda n: read_by.get(n, []), lambda o: [x for x, _ in o.outputs])
    for name in filter(is_image, function.outputs):
        ends |= _nearest(name, lambda n: [made_by[n]] if n in made_by else [], _computed)
    return ends


def _nearest(
    start: str,
    neighbours: Callable[[str], list[Operation]],
    onward: Callable[[Operation], list[str]],
) -> set[str]:
    """Weights of the convolutions reached first on every way from a value."""
    found: set[str] = set()
    pending, seen = [start], {start}
    while pending:
        for operation in neighbours(pending.pop()):
            if operation.kind == "conv":
                weight = _weight_name(operation)
                found |= {weight} if weight else set()
                continue
            fresh = [name for name in onward(operation) if name not in seen]
            seen.update(fresh)
            pending += fresh
    return found


def _computed(operation: Operation) -> list[str]:
    return [b for parts in operation.inputs.values() for b in parts if isinstance(b, str)]


def _weight_name(operation: Operation) -> str | None:
    parts = operation.inputs.get(WEIGHTED.get(operation.kind, ""), ())
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else None


def _is_stored(constant: Operation) -> bool:
    """Whether it is an fp16 matrix or filter in the weight file."""
    (_, kind), (value,) = constant.outputs[0], constant.inputs["val"]
    in_file = not isinstance(value, str) and isinstance(value.value, BlobReference)
    return in_file and kind.dtype == "fp16" and len(kind.shape) >= 2


def _apply(source: Path, target: Path, names: set[str], bits: int) -> None:
    """Let coremltools replace the named constants by palettes of ours."""

    def table_and_indices(weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        halves = weight.astype(np.float16)
        palette = palette_of(halves, bits)
        return palette.values.astype(weight.dtype), palette.indices

    with (
        quiet_coremltools() as coremltools,
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
    ):
        optimize = importlib.import_module("coremltools.optimize.coreml")
        opened = Path(scratch) / "opened.mlpackage"  # coremltools rewrites what it only opens
        copy_package(source, opened)
        model = coremltools.models.MLModel(str(opened), skip_model_load=True)
        each = optimize.OpPalettizerConfig(
            mode="custom", lut_function=table_and_indices, weight_threshold=0
        )
        config = optimize.OptimizationConfig(
            global_config=None, op_name_configs=dict.fromkeys(sorted(names), each)
        )
        model = optimize.palettize_weights(model, config)
        saved = Path(scratch) / target.name
        model.save(str(saved))
        saved.rename(target)


def _copy_the_rest(bundle: Bundle, folder: Path) -> None:
    """Tables, tokenizer, configuration, golden record: everything outside the packages."""
    packages = tuple(f"{p.path}/" for p in bundle.manifest.packages)
    for file in bundle.manifest.files:
        if file.path != MANIFEST and not file.path.startswith(packages):
            copy = folder / file.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(file.path), copy)
