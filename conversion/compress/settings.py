"""How a weight can be stored, and why some weights cannot be stored so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ConversionError
from ..package_file.weights import Weight

PALETTE_BITS = (8, 6, 4, 3, 2)
LINEAR = {"int8": 8, "int4": 4}
INT4_BLOCK = 32  # input channels that share a scale
MINIMUM_ELEMENTS = 2048  # smaller weights are not worth an extra operation

Key = tuple[str, str]  # package, weight


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
