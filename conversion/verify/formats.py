"""Compares the two formats of one model: our executor and Apple's runtime, package by package.

The executor runs the Core ML bundle on the noisy images of a record. Each package of the Core AI
bundle then gets the inputs that its counterpart got. Neither side shares code with the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mdm_apple.config.types import ComputeUnits, ExecutorPrecision

from ..bundle.folder import Bundle
from ..bundle.manifest import PackageInfo
from ..errors import BundleError
from ..execute import Watch
from ..run.packages import Denoiser, Jump, Load, Runnable, Values
from ..source.trajectory import TextInputs, Trajectory
from .ladder import text_of
from .parts import PartRow, worst_output

FLOORS: dict[ExecutorPrecision, float] = {"fp16": 58.0, "fp32": 120.0}  # dB
# In fp32. coremltools writes the exact GELU where the text encoder has its tanh form. And outside
# macOS 27, Apple's runtime adds up a plain group norm one number after another, which costs the
# largest level of a student 2 dB more than the floor allows.
TEXT_FLOOR, PLAIN_STUDENT_FLOOR = 85.0, 117.0


def check_other_format(one: Bundle, other: Bundle) -> None:
    """Raise BundleError unless both hold the same model in the same form, one in each format."""
    if {one.manifest.format, other.manifest.format} != {"coreml", "coreai"}:
        raise BundleError(
            f"{other.path}: is a {other.manifest.format} bundle like {one.path}; give one of each "
            "format."
        )
    advice = "convert one model twice, with the same --layout, --compute and compression."
    if one.config() != other.config():
        raise BundleError(f"{other.path}: does not hold the model of {one.path}; {advice}")
    for (what, mine), theirs in zip(_form(one).items(), _form(other).values(), strict=True):
        if mine != theirs:
            raise BundleError(
                f"{other.path}: its {what} {theirs}, but in {one.path} {mine}; {advice}"
            )


def _form(bundle: Bundle) -> dict[str, str]:
    """What two bundles must share before their packages can be compared, as said in a sentence."""
    packages = bundle.manifest.packages
    bits = ", ".join(map(str, dict.fromkeys(p.weight_bits for p in packages)))
    precisions = ", ".join(dict.fromkeys(p.precision for p in packages))
    return {
        "layout is": bundle.manifest.layout,
        "layers are those for": bundle.compute,
        "precision is": precisions,
        "weights have": f"{bits} bits ({bundle.manifest.variant})",
        "packages are": ", ".join(p.name for p in packages),
    }


def rows_of_formats(
    one: tuple[Bundle, Load],
    other: tuple[Bundle, Load],
    text: TextInputs | None,
    record: Trajectory,
    precision: ExecutorPrecision,
) -> tuple[PartRow, ...]:
    """A row per package: the worst output over the record's noise levels, for its first prompt."""
    (coreml, executor), (coreai, apple) = (
        (one, other) if one[0].manifest.format == "coreml" else (other, one)
    )
    recording = _Recording(executor)
    denoiser = Denoiser(coreml, precision, recording)
    given = denoiser.condition(text_of(coreml, text, 0))
    worst: dict[str, PartRow] = {}
    for probe, stop in product(record.probes, _stops(coreml)):
        jump = None if probe.target is None else Jump(probe.target)
        x_t = [x[:1] for x in probe.x_t[stop:]]
        denoiser.predict(x_t, probe.t - 1, given, first_level=stop, jump=jump)
        for mine, theirs in zip(coreml.manifest.packages, coreai.manifest.packages, strict=True):
            call = recording.calls.pop((coreml.file(mine.path), coreml.function(mine)), None)
            if call is None:  # text, which ran once, or a function that stops earlier
                continue
            run = apple(coreai.file(theirs.path), coreai.function(theirs), theirs.compute)
            row = worst_output(
                mine.name, call.outputs, run(call.inputs), _floor(coreml, mine, precision)
            )
            worst[mine.name] = min(row, worst.get(mine.name, row), key=lambda r: r.psnr)
    unproven = [p.name for p in coreml.manifest.packages if p.name not in worst]
    if unproven:
        raise BundleError(
            f"{coreml.path}: {', '.join(unproven)} did not run on the record's noisy images, so "
            "nothing is known about them; convert the model again."
        )
    return tuple(worst.values())


def _floor(bundle: Bundle, package: PackageInfo, precision: ExecutorPrecision) -> float:
    if precision == "fp32" and package.phase == "text":
        return TEXT_FLOOR
    plain_student = bundle.compute == "gpu" and bundle.manifest.student is not None
    largest = package.phase == "step" and package.side in (None, bundle.sides[0])
    if precision == "fp32" and plain_student and largest:
        return PLAIN_STUDENT_FLOOR
    return FLOORS[precision]


def _stops(bundle: Bundle) -> range:
    """The largest levels to run, so that every package runs; each has its function, or all run."""
    return range(len(bundle.sides) if bundle.manifest.layout == "multifunction" else 1)


@dataclass(frozen=True)
class _Call:
    inputs: Values
    outputs: Values


class _Recording:
    """A loader whose packages leave their last inputs and outputs in `calls`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.calls: dict[tuple[Path, str | None], _Call] = {}

    def __call__(self, path: Path, function: str | None, units: ComputeUnits) -> Runnable:
        run = self._load(path, function, units)

        def recorded(inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None) -> Values:
            out = run(inputs, watch)
            self.calls[path, function] = _Call(dict(inputs), out)
            return out

        return recorded
