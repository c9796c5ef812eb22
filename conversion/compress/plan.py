"""Which compression each weight of a bundle gets, and why some weights get none."""

from __future__ import annotations

from ..bundle.folder import Bundle
from ..bundle.manifest import PackageInfo
from ..errors import ConversionError
from .settings import PlannedWeight, Setting, refusal
from .weighted_package import open_weights


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
        package = open_weights(bundle, info)
        for weight in package.weights:
            reason = refusal(weight, setting)
            if reason is None and protect_ends and weight.name in package.ends:
                reason = "first or last convolution"
            plan.append(PlannedWeight(info.name, weight, None if reason else setting, reason))
    return plan


def whole_packages(bundle: Bundle) -> list[PackageInfo]:
    """The entries of a manifest, one per package file: further functions of it are left out."""
    first = {info.path: info for info in reversed(bundle.manifest.packages)}
    return [info for info in bundle.manifest.packages if first[info.path] is info]


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
