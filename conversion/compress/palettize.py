"""Makes a bundle smaller: weights become indices into small tables, or scaled integers.

Input: a bundle with fp16 weights and a plan. Output: a new bundle, and a report that names every
weight left at 16 bits and gives the reason.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdm_apple.config.strict_json import plain_values
from mdm_apple.config.types import Say

from ..bundle.folder import MANIFEST, Bundle, bundle_folder, finish_bundle
from ..bundle.manifest import PackageInfo, package_bytes
from ..bundle.memory import peak_memory
from ..errors import ConversionError
from .palette_jobs import Job, PackedPalettes, run_jobs
from .plan import uniform_plan
from .recipe import Recipe, recipe_plan
from .settings import MINIMUM_ELEMENTS, Key, PlannedWeight, Setting
from .weighted_package import WeightedPackage, open_weights


@dataclass(frozen=True)
class WeightReport:
    """One weight of a package: its bits now, and the reason if it kept 16.

    snr: of the stored weight against its fp16 numbers, in dB; None if it kept them or was not
    palettized here.
    """

    package: str
    name: str
    elements: int
    bits: int
    reason: str | None
    snr: float | None = None


@dataclass(frozen=True)
class PalettizeReport:
    """The outcome for every weight, and the bytes of all packages before and after.

    snr: of all palettized weights together, in dB.
    """

    variant: str
    weights: tuple[WeightReport, ...]
    bytes_before: int
    bytes_after: int
    snr: float | None

    def as_json(self) -> dict[str, Any]:
        return plain_values(dataclasses.asdict(self))


def palettize(
    bundle: Bundle,
    out: Path,
    setting: Setting | int,
    protect_ends: bool = True,
    overwrite: bool = False,
    say: Say = lambda _: None,
    processes: int | None = None,
    max_package_mb: float | None = None,
) -> tuple[Bundle, PalettizeReport]:
    """Write a bundle that stores every weight with one setting, where the weight allows it.

    Args:
        setting: a plain number of bits means one palette per weight.
        protect_ends: leave the first and last convolutions of each level alone.
        processes: None chooses by the work and the available processors.
        max_package_mb: split packages that are still larger; None splits none.

    Raises ConversionError if the bundle is already compressed or its system lacks the setting.
    """
    setting = Setting(setting) if isinstance(setting, int) else setting
    refuse_compressed(bundle)
    plan = uniform_plan(bundle, setting, protect_ends)
    return apply_plan(bundle, out, plan, setting.name, overwrite, say, processes, max_package_mb)


def palettize_by_recipe(
    bundle: Bundle,
    out: Path,
    recipe: Recipe,
    overwrite: bool = False,
    say: Say = lambda _: None,
    processes: int | None = None,
    max_package_mb: float | None = None,
) -> tuple[Bundle, PalettizeReport]:
    """Write a bundle whose weights have the bits of a recipe; its variant is the recipe's name.

    Raises ConversionError if the bundle is already compressed or the recipe does not fit it.
    """
    refuse_compressed(bundle)
    plan = recipe_plan(bundle, recipe)
    return apply_plan(bundle, out, plan, recipe.name, overwrite, say, processes, max_package_mb)


def refuse_compressed(bundle: Bundle) -> None:
    """Raise ConversionError unless all weights of the bundle are fp16."""
    if any(p.weight_bits != 16 for p in bundle.manifest.packages):
        raise ConversionError(
            f"{bundle.path}: is already compressed ({bundle.manifest.variant}); start from the "
            "fp16 bundle, because every compression adds error."
        )


def apply_plan(
    bundle: Bundle,
    out: Path,
    plan: Sequence[PlannedWeight],
    variant: str,
    overwrite: bool = False,
    say: Say = lambda _: None,
    processes: int | None = None,
    max_package_mb: float | None = None,
) -> tuple[Bundle, PalettizeReport]:
    """Write a bundle with each weight stored as planned, called `variant`.

    Raises ConversionError if no weight can be stored that way.
    """
    if not any(p.setting for p in plan):
        raise _nothing_to_do(bundle, plan)
    weights: list[WeightReport] = []
    with bundle_folder(out, overwrite) as folder:
        copy_all_but_packages(bundle, folder)
        palettes = planned_palettes(bundle, plan, say, processes)
        packages: list[PackageInfo] = []
        bits: dict[str, int] = {}
        for info in bundle.manifest.packages:
            mine = [p for p in plan if p.package == info.name]
            package = open_weights(bundle, info)
            if not (folder / info.path).exists():  # else a function of a package already written
                say(f"{info.name}: writing")
                weights += _write_package(package, folder / info.path, mine, palettes)
                bits[info.path] = min((p.setting.bits for p in mine if p.setting), default=16)
            packages += package.entries(folder, info, bits[info.path], max_package_mb)
        manifest = dataclasses.replace(
            bundle.manifest,
            variant=variant,
            packages=tuple(packages),
            peak_memory=peak_memory(packages),
        )
        finish_bundle(folder, manifest)
    before = package_bytes(bundle.manifest.packages)
    after = package_bytes(packages)
    error = sum(p.squared_error for p in palettes.values())
    total = sum(p.squared_sum for p in palettes.values())
    snr = _snr(total, error) if palettes else None
    return Bundle.open(out), PalettizeReport(variant, tuple(weights), before, after, snr)


def _nothing_to_do(bundle: Bundle, plan: Sequence[PlannedWeight]) -> ConversionError:
    """Names the reason that holds for most of the weights, apart from those that are too small."""
    reasons = Counter(p.reason for p in plan if p.weight.elements >= MINIMUM_ELEMENTS)
    common = reasons.most_common(1)
    why = f", most of them because {common[0][0]}" if common else ""
    return ConversionError(
        f"{bundle.path}: none of its {len(plan)} weights can be stored that way{why}; choose other "
        "bits or another group."
    )


def planned_palettes(
    bundle: Bundle, plan: Sequence[PlannedWeight], say: Say, processes: int | None
) -> dict[Key, PackedPalettes]:
    """The palettes of all planned weights."""
    jobs: dict[Key, Job] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for info in bundle.manifest.packages:
            mine = [p for p in plan if p.package == info.name and _by_palette(p)]
            names = [p.weight.name for p in mine]
            places = open_weights(bundle, info).places(names, Path(scratch)) if mine else []
            for p, (file, offset) in zip(mine, places, strict=True):
                assert p.setting is not None
                axis = p.weight.out_axis if p.setting.group else 0
                jobs[p.package, p.weight.name] = Job(
                    file, offset, p.weight.shape, axis or 0, p.setting.group, p.setting.bits
                )
        return dict(zip(jobs, run_jobs(list(jobs.values()), processes, say), strict=True))


def _by_palette(p: PlannedWeight) -> bool:
    return p.setting is not None and p.setting.form == "palette"


def _write_package(
    package: WeightedPackage,
    target: Path,
    plan: Sequence[PlannedWeight],
    palettes: Mapping[Key, PackedPalettes],
) -> list[WeightReport]:
    """Write one package to `target`; returns a report per weight."""
    linear = [p for p in plan if p.setting and p.setting.form == "linear"]
    here = {p.weight.name: palettes[p.package, p.weight.name] for p in plan if _by_palette(p)}
    if here and linear:
        raise ConversionError(f"{target.stem}: palettes and linear weights cannot be mixed.")
    plain: Collection[str] = ()
    if linear:
        bits = {p.setting.bits for p in linear if p.setting}
        plain = package.write_integers(target, {p.weight.name for p in linear}, bits.pop())
    else:
        package.write_palettes(target, here)
    return [_report(p, here.get(p.weight.name), plain) for p in plan]


def _report(p: PlannedWeight, found: PackedPalettes | None, plain: Collection[str]) -> WeightReport:
    name, elements = p.weight.name, p.weight.elements
    if p.setting is None:
        return WeightReport(p.package, name, elements, 16, p.reason)
    if name in plain:
        return WeightReport(p.package, name, elements, 16, "coremltools left it unchanged")
    snr = _snr(found.squared_sum, found.squared_error) if found else None
    return WeightReport(p.package, name, elements, p.setting.bits, None, snr)


def _snr(total: float, error: float) -> float:
    return 10 * math.log10(total / error) if error > 0 else math.inf


def copy_all_but_packages(bundle: Bundle, folder: Path) -> None:
    """Tables, tokenizer, configuration, golden record: everything outside the packages."""
    packages = tuple(f"{p.path}/" for p in bundle.manifest.packages)
    for file in bundle.manifest.files:
        if file.path != MANIFEST and not file.path.startswith(packages):
            copy = folder / file.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(file.path), copy)
