"""Which compression each weight of a bundle gets, and why some weights get none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..bundle.folder import Bundle
from ..bundle.manifest import PackageInfo
from ..errors import ConversionError
from ..execute import Package
from ..package_file.weights import Weight, end_convolutions, weights_of

PALETTE_BITS = (8, 6, 4, 3, 2)
LINEAR = {"int8": 8, "int4": 4}
INT4_BLOCK = 32  # input channels that share a scale
MINIMUM_ELEMENTS = 2048  # smaller weights are not worth an extra operation


@dataclass(frozen=True)
class Setting:
    """How a weight is stored.

    form: "palette" (2^bits values) or "linear" (integers and a scale: int8 per output channel, or
    int4 per block of input channels). group: output channels that share a palette; None for one
    palette per weight.
    """

    bits: int
    form: Literal["palette", "linear"] = "palette"
    group: int | None = None

    def __post_init__(self) -> None:
        known = PALETTE_BITS if self.form == "palette" else tuple(LINEAR.values())
        if self.bits not in known:
            raise ConversionError(
                f"bits: expected one of {', '.join(map(str, known))}, got {self.bits}."
            )
        if self.group is not None and (self.form != "palette" or self.group < 1):
            raise ConversionError("group: takes a positive number of channels, with palettes only.")

    @classmethod
    def parse(cls, bits: str, group: int | None = None) -> Setting:
        """From `--bits` and `--group`. Raises ConversionError."""
        if bits in LINEAR:
            return cls(LINEAR[bits], "linear", group)
        return cls(int(bits) if bits.isdigit() else 0, "palette", group)

    @property
    def name(self) -> str:
        """The variant name that a bundle with this setting has in its manifest."""
        if self.form == "linear":
            return "int8" if self.bits == 8 else f"int4-block{INT4_BLOCK}"
        return f"palettized-{self.bits}" + (f"-group{self.group}" if self.group else "")


@dataclass(frozen=True)
class PlannedWeight:
    """A weight of a package with its setting, or with the reason why it keeps 16 bits."""

    package: str
    weight: Weight
    setting: Setting | None
    reason: str | None


def uniform_plan(
    bundle: Bundle, setting: Setting, protect_ends: bool = True
) -> list[PlannedWeight]:
    """One setting for all weights that allow it.

    Args:
        protect_ends: leave the first and last convolutions of each level alone.

    Raises ConversionError if the bundle's oldest system cannot load the setting.
    """
    check_target(bundle, setting)
    plan: list[PlannedWeight] = []
    for info in whole_packages(bundle):
        weights, ends = package_weights(bundle, info)
        for weight in weights:
            reason = refusal(weight, setting)
            if reason is None and protect_ends and weight.name in ends:
                reason = "first or last convolution"
            plan.append(PlannedWeight(info.name, weight, None if reason else setting, reason))
    return plan


def whole_packages(bundle: Bundle) -> list[PackageInfo]:
    """The entries of a manifest, one per package file: further functions of it are left out."""
    first = {info.path: info for info in reversed(bundle.manifest.packages)}
    return [info for info in bundle.manifest.packages if first[info.path] is info]


def package_weights(bundle: Bundle, info: PackageInfo) -> tuple[list[Weight], set[str]]:
    """The weights of a package's functions, each listed once, and the names of its end weights."""
    package = Package.open(bundle.file(info.path))
    found: dict[tuple[str, int], Weight] = {}
    names, ends = set[str](), set[str]()
    for name in package.functions:
        function = package.function(name)
        ends |= end_convolutions(function)
        for weight in weights_of(function):
            where = weight.stored.file, weight.stored.offset
            if where not in found:
                taken = weight.name in names  # by a different weight in another function
                found[where] = replace(weight, name=f"{name}/{weight.name}") if taken else weight
                names.add(found[where].name)
    return list(found.values()), ends


def refusal(weight: Weight, setting: Setting) -> str | None:
    """Why a weight cannot have a setting, or None if it can."""
    if weight.elements < MINIMUM_ELEMENTS:
        return f"fewer than {MINIMUM_ELEMENTS} numbers"
    if setting.form == "linear":
        return _linear_refusal(weight, setting)
    if setting.group is None:
        return None
    if weight.out_axis is None:
        return "operations that use it disagree about its output channels"
    channels = weight.shape[weight.out_axis]
    if channels % setting.group:
        return f"its {channels} output channels do not divide into groups of {setting.group}"
    palettes = channels // setting.group * 2**setting.bits * 2
    if palettes >= weight.elements * (16 - setting.bits) // 8:
        return "its palettes would be as large as the bytes they save"
    return None


def _linear_refusal(weight: Weight, setting: Setting) -> str | None:
    if weight.out_axis is None or weight.in_axis is None:
        return "operations that use it disagree about its channels"
    channels = weight.shape[weight.in_axis]
    if setting.bits == 4 and channels % INT4_BLOCK:
        return f"its {channels} input channels do not divide into blocks of {INT4_BLOCK}"
    return None


def check_target(bundle: Bundle, setting: Setting) -> None:
    """Refuse a setting that needs a later system than the bundle's target."""
    needs = {
        "palettes of 3 bits": setting.form == "palette" and setting.bits == 3,
        "palettes per group of channels": setting.group is not None,
        "int4": setting.form == "linear" and setting.bits == 4,
    }
    for what, needed in needs.items():
        if needed and bundle.manifest.target == "iOS17":
            raise ConversionError(
                f"{bundle.path}: is made for iOS 17, but {what} need iOS 18; convert with "
                "--target iOS18."
            )
