"""A package of a bundle as compression sees it: named weights that can be stored smaller.

Each format has one class for this; the manifest says which. What is planned, searched and reported
is the same for both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..bundle.folder import Bundle
from ..bundle.manifest import PackageInfo
from ..package_file.weights import Weight
from .core_ai_package import CoreAIPackage
from .core_ml_package import CoreMLPackage
from .histogram import Halves
from .palette_jobs import PackedPalettes, Place


class WeightedPackage(Protocol):
    """One package file with all its functions."""

    @property
    def weights(self) -> Sequence[Weight]:
        """The weights, each once, with names of their own."""
        ...

    @property
    def ends(self) -> Collection[str]:
        """Names of the weights nearest to an image that enters or leaves."""
        ...

    def numbers(self, name: str) -> Halves:
        """The fp16 numbers of a weight, in its shape."""
        ...

    def places(self, names: Sequence[str], scratch: Path) -> list[Place]:
        """Where weights lie in a weight file; it is made in the folder `scratch` if need be."""
        ...

    def write_palettes(self, target: Path, palettes: Mapping[str, PackedPalettes]) -> None:
        """Write the package to `target` with palettes for the named weights."""
        ...

    def write_integers(self, target: Path, names: Collection[str], bits: int) -> Collection[str]:
        """Write the package with the named weights as integers; returns those left unchanged.

        bits: 8, with a scale per output channel, or 4, with a scale per block of input channels.
        """
        ...

    def entries(
        self, folder: Path, info: PackageInfo, bits: int, limit_mb: float | None
    ) -> list[PackageInfo]:
        """The entries of a function of the package that was written to `folder`.

        Args:
            bits: of its weights. limit_mb: split a larger package; None: never.
        """
        ...


def open_weights(bundle: Bundle, info: PackageInfo) -> WeightedPackage:
    """The package behind an entry. Raises MissingPackageError without Core AI's packages."""
    if bundle.manifest.format == "coreai":
        return CoreAIPackage(bundle, info)
    return CoreMLPackage(bundle, info)
