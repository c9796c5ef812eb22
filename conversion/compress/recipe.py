"""A recipe: the number of bits for each weight of a bundle. Strict JSON, written and read here.

    {"schema": 1, "name": "balanced", "group": null, "protect_ends": true,
     "bits": {"core_16": {"p_level_conv_in_weight_to_fp16": 6, ...}, ...}}

A recipe fits a bundle when it names every weight that can be compressed, and no other.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from mdm_apple.config.strict_json import read_config, unknown_name

from ..bundle.folder import Bundle
from ..errors import ConversionError
from .plan import check_target, whole_packages
from .settings import PALETTE_BITS, PlannedWeight, Setting, refusal
from .weighted_package import open_weights

SCHEMA_VERSION = 1
MAX_BYTES = 8 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,39}")


@dataclass(frozen=True)
class Recipe:
    """bits: by package and weight; 16 leaves a weight alone.

    group: output channels that share a palette; None for one palette per weight. protect_ends: the
    recipe leaves out the first and last convolutions of each level.
    """

    schema: int
    name: str
    group: int | None
    protect_ends: bool
    bits: dict[str, dict[str, int]]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA_VERSION:
            raise ConversionError(
                f"recipe: has schema {self.schema}, but this version reads {SCHEMA_VERSION}."
            )
        if not _NAME.fullmatch(self.name):
            raise ConversionError(
                "recipe: name must be 1 to 40 of a-z, 0-9, '.', '+' and '-', beginning with a "
                f"letter or digit, got {self.name[:60]!r}."
            )
        if self.group is not None and not 1 <= self.group <= 1 << 16:
            raise ConversionError(f"recipe: group must be from 1 to 65536, got {self.group}.")
        for package, weights in self.bits.items():
            for weight, bits in weights.items():
                if bits not in (*PALETTE_BITS, 16):
                    raise ConversionError(
                        f"recipe: {package[:80]} {weight[:160]}: expected 16, "
                        f"{', '.join(map(str, PALETTE_BITS))} bits, got {bits}."
                    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises MdmError with one sentence for anything else."""
    return read_config(Recipe, path, MAX_BYTES)


def recipe_plan(bundle: Bundle, recipe: Recipe) -> list[PlannedWeight]:
    """Every weight of the bundle with its setting from the recipe.

    Raises ConversionError if a name does not match, or the weight or system lacks the setting.
    """
    plan: list[PlannedWeight] = []
    packages = [info.name for info in whole_packages(bundle)]
    for name in recipe.bits:
        if name not in packages:
            raise ConversionError(
                f"recipe: the bundle has no package {name[:80]!r}. "
                f"{unknown_name(name[:80], packages)}"
            )
    for info in whole_packages(bundle):
        package = open_weights(bundle, info)
        asked = dict(recipe.bits.get(info.name, {}))
        for weight in package.weights:
            bits = asked.pop(weight.name, None)
            plan.append(
                _planned(
                    bundle,
                    recipe,
                    PlannedWeight(info.name, weight, None, None),
                    bits,
                    weight.name in package.ends,
                )
            )
        for name in asked:
            near = difflib.get_close_matches(name[:160], [w.name for w in package.weights], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConversionError(f"recipe: {info.name} has no weight {name[:160]!r}.{hint}")
    return plan


def _planned(
    bundle: Bundle, recipe: Recipe, kept: PlannedWeight, bits: int | None, is_end: bool
) -> PlannedWeight:
    weight = kept.weight
    setting = Setting(PALETTE_BITS[0] if bits in (None, 16) else bits, group=recipe.group)
    reason = refusal(weight, setting)
    if reason is None and recipe.protect_ends and is_end:
        reason = "first or last convolution"
    if bits == 16:
        return PlannedWeight(kept.package, weight, None, reason or "the recipe keeps it")
    if bits is None:
        lacking = refusal(weight, Setting(4, group=recipe.group)) is None and not (
            recipe.protect_ends and is_end
        )
        if lacking:
            raise ConversionError(
                f"recipe: lacks {weight.name} of {kept.package}; it was made for another bundle."
            )
        return PlannedWeight(kept.package, weight, None, reason)
    if reason is not None:
        raise ConversionError(
            f"recipe: {weight.name} of {kept.package} cannot take {bits} bits: {reason}."
        )
    check_target(bundle, setting)
    return PlannedWeight(kept.package, weight, setting, None)
