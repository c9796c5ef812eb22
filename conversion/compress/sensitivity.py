"""Measures how much each weight matters: the prediction error if it alone has few bits.

Input: an fp16 bundle and its model. Output: the size of every weight at every number of bits and
the error this causes, as strict JSON.

The error is the noise-to-signal ratio of the predictions on noisy images of real trajectories:
squared error over squared value, averaged over all levels and noise levels. It is measured at
MEASURED bits. At other bits it is scaled with the squared error of the weight itself, which the
palettes give exactly, because a small weight error passes through a network in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.strict_json import read_config, to_json
from mdm_apple.storage.files import atomic_file

from ..bundle.folder import Bundle
from ..bundle.manifest import package_bytes
from ..errors import ConversionError
from ..package_file.weightfile import record_bytes
from ..source.model import ModelSource, load_source
from ..source.trajectory import PROMPTS, TextInputs, Trajectory, record_trajectory, text_inputs
from .compressed_network import CompressedNetwork
from .palette_jobs import PackedPalettes
from .palettize import planned_palettes
from .plan import uniform_plan
from .replace import IN_PLACE
from .settings import PALETTE_BITS, Key, PlannedWeight, Setting

SCHEMA_VERSION = 1
MEASURED = (4, 2)
MAX_BYTES = 64 << 20  # of a file of sensitivities
OPERATION_BYTES = 160  # the most that a lookup adds to the constant it replaces, in either format


@dataclass(frozen=True)
class Option:
    """A weight stored in `bits`: its size, and the noise-to-signal ratio that this causes."""

    bits: int
    bytes: int
    error: float

    def __post_init__(self) -> None:
        if self.bits not in (*PALETTE_BITS, 16) or self.bytes < 0 or self.error < 0:
            raise ConversionError(f"option: {self} is not an option that a weight can have.")


@dataclass(frozen=True)
class WeightSensitivity:
    """The options of one weight, 16 bits first."""

    package: str
    weight: str
    elements: int
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        if not self.options or self.options[0].bits != 16:
            raise ConversionError(f"{self.weight}: its options must begin with 16 bits.")


@dataclass(frozen=True)
class Sensitivity:
    """All weights that may be compressed. bundle: digest of the measured fp16 bundle.

    group: channels per palette. fixed_bytes: of all packages without these weights. times: table
    indices of the noisy images. prompts: number of trajectories.
    """

    schema: int
    bundle: str
    group: int | None
    protect_ends: bool
    fixed_bytes: int
    times: tuple[int, ...]
    prompts: int
    weights: tuple[WeightSensitivity, ...]

    @property
    def elements(self) -> int:
        return sum(w.elements for w in self.weights)

    def uniform_bytes(self, bits: int) -> int:
        """Size of a bundle whose weights all have `bits`, where they can."""
        return self.fixed_bytes + sum(
            next((o.bytes for o in w.options if o.bits == bits), w.options[0].bytes)
            for w in self.weights
        )


def read_sensitivity(path: Path, bundle: Bundle) -> Sensitivity:
    """Read a file that `to_json` made for this same bundle. Raises MdmError."""
    found = read_config(Sensitivity, path, MAX_BYTES)
    if found.schema != SCHEMA_VERSION:
        raise ConversionError(
            f"{path}: has schema {found.schema}, but this version reads {SCHEMA_VERSION}; measure "
            "again."
        )
    if found.bundle != bundle.manifest.digest:
        raise ConversionError(
            f"{path}: was measured on another bundle; name another file or delete it."
        )
    return found


def known_or_measured(
    path: Path | None,
    bundle: Bundle,
    folder: Path | None,
    group: int | None = None,
    protect_ends: bool = True,
    prompts: int = 2,
    say: Callable[[str], None] = lambda _: None,
    processes: int | None = None,
) -> Sensitivity:
    """Read them from `path` if it exists; else measure them on the model and write that file.

    Raises ConversionError for measurements with other settings.
    """
    if path is not None and path.exists():
        found = read_sensitivity(path, bundle)
        if (found.group, found.protect_ends) != (group, protect_ends):
            raise ConversionError(
                f"{path}: was measured with a different --group or --protect-ends; name another "
                "file."
            )
        return found
    assert folder is not None, "without measurements, the caller has a model"
    text = bundle.manifest.text
    source = load_source(folder, "yes" if text and text.encoder else "no")
    measured = measure_sensitivity(bundle, source, group, protect_ends, prompts, say, processes)
    if path is not None:
        with atomic_file(path) as file:
            file.write(to_json(measured).encode())
    return measured


def measure_sensitivity(
    bundle: Bundle,
    source: ModelSource,
    group: int | None = None,
    protect_ends: bool = True,
    prompts: int = 2,
    say: Callable[[str], None] = lambda _: None,
    processes: int | None = None,
) -> Sensitivity:
    """Measure every weight that can have palettes.

    Args:
        group: output channels that share a palette. prompts: number of trajectories, up to 8.

    Raises ConversionError or BundleError if the source is not the model of the bundle.
    """
    plans = option_plans(bundle, group, protect_ends)
    keys = _keys(plans)
    net = CompressedNetwork(bundle, source, list(keys.values()))
    chosen = PROMPTS[: max(1, min(prompts, len(PROMPTS)))]
    say("trajectories")
    text = text_inputs(source, chosen)
    judge = _Judge(net, record_trajectory(source, text, len(chosen)), text)
    palettes = {
        bits: planned_palettes(bundle, plan, say, processes) for bits, plan in plans.items()
    }
    phases = {p.name: p.phase for p in bundle.manifest.packages}
    weights: list[WeightSensitivity] = []
    for k, (key, planned) in enumerate(keys.items()):
        found = {b: p[key] for b, p in palettes.items() if key in p}
        plain = Option(16, record_bytes(2 * planned.weight.elements), 0.0)
        of_text = phases[key[0]] != "step"
        measured = {
            b: judge.error({key: found[b].dense(planned.weight.shape)}, of_text)
            for b in MEASURED
            if b in found
        }
        weights.append(
            WeightSensitivity(*key, planned.weight.elements, (plain, *_options(found, measured)))
        )
        say(f"{k + 1} of {len(keys)} weights measured")
    total = package_bytes(bundle.manifest.packages)
    return Sensitivity(
        SCHEMA_VERSION,
        bundle.manifest.digest,
        group,
        protect_ends,
        total - sum(w.options[0].bytes for w in weights),
        tuple(probe.t for probe in judge.record.probes),
        len(chosen),
        tuple(weights),
    )


def option_plans(
    bundle: Bundle, group: int | None, protect_ends: bool
) -> dict[int, list[PlannedWeight]]:
    """The weights that can have each number of bits. Raises ConversionError if there are none."""
    plans: dict[int, list[PlannedWeight]] = {}
    for bits in PALETTE_BITS:
        if bits == 3 and bundle.manifest.target == "iOS17":
            continue
        plan = uniform_plan(bundle, Setting(bits, group=group), protect_ends)
        plans[bits] = [p for p in plan if p.setting is not None]
    if not any(plans.values()):
        raise ConversionError(f"{bundle.path}: none of its weights can be palettized this way.")
    return plans


def _keys(plans: dict[int, list[PlannedWeight]]) -> dict[Key, PlannedWeight]:
    return {(p.package, p.weight.name): p for plan in plans.values() for p in plan}


class _Judge:
    """Compares the network's predictions with those of its fp16 weights at every probe."""

    def __init__(self, net: CompressedNetwork, record: Trajectory, text: TextInputs | None) -> None:
        self.net, self.record, self._text = net, record, text
        self._conditioning = net.condition(text)
        self._reference = self._predictions(self._conditioning)

    def error(self, weights: dict[Key, NDArray[Any]], with_text: bool) -> float:
        """Noise-to-signal ratio with `weights` in place. with_text: they affect the text path."""
        before = self.net.exchange(weights)
        conditioning = self.net.condition(self._text) if with_text else self._conditioning
        found = self._predictions(conditioning)
        self.net.exchange(before)
        ratios = [
            np.square(got - wanted).sum() / np.square(wanted).sum()
            for got, wanted in zip(found, self._reference, strict=True)
        ]
        return float(np.mean(ratios))

    def _predictions(self, conditioning: Any) -> list[NDArray[np.float64]]:
        return [
            level.numpy().astype(np.float64)
            for probe in self.record.probes
            for level in self.net.predict(probe.x_t, probe.t - 1, conditioning)
        ]


def _options(found: dict[int, PackedPalettes], measured: dict[int, float]) -> list[Option]:
    """Options from many bits to few; unmeasured errors scale with the weight's squared error."""
    options: list[Option] = []
    worst = 0.0
    for bits in sorted(found, reverse=True):
        palettes = found[bits]
        near = min(measured, key=lambda m: (abs(m - bits), -m), default=bits)
        error = measured.get(near, 0.0)
        if near != bits and found[near].squared_error > 0:
            error *= palettes.squared_error / found[near].squared_error
        worst = max(worst, error)  # fewer bits may look better by chance
        size = record_bytes(palettes.indices.size) + OPERATION_BYTES
        if palettes.values.size >= IN_PLACE:
            size += record_bytes(palettes.values.nbytes)
        options.append(Option(bits, size, worst))
    return options
