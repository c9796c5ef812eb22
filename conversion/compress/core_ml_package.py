"""The weights of a .mlpackage, and the package with them stored smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ..bundle.folder import Bundle
from ..bundle.make_manifest import described_again
from ..bundle.manifest import PackageInfo
from ..errors import ConversionError
from ..execute import Package
from ..package_file.seal import copy_package, package_size, seal_package
from ..package_file.split import split_to_fit
from ..package_file.weights import StoredWeight, end_convolutions, weights_of
from .histogram import Halves
from .integer_weights import quantize_linear
from .palette_jobs import PackedPalettes, Place
from .replace import replace_weights


class CoreMLPackage:
    """See `weighted_package.WeightedPackage`."""

    def __init__(self, bundle: Bundle, info: PackageInfo) -> None:
        self._path = bundle.file(info.path)
        self._license = bundle.manifest.provenance.license
        self._shared = bundle.function(info) is not None

    @cached_property
    def _package(self) -> Package:
        return Package.open(self._path)

    @property
    def weights(self) -> list[StoredWeight]:
        return list(self._by_name.values())

    @property
    def ends(self) -> set[str]:
        return self._ends

    def numbers(self, name: str) -> Halves:
        weight = self._by_name[name]
        file = self._package.weight_file(weight.stored.file)
        return file.read(weight.stored.offset, "fp16", weight.elements).reshape(weight.shape)

    def places(self, names: Sequence[str], scratch: Path) -> list[Place]:
        stored = [self._by_name[name].stored for name in names]
        return [(self._package.weight_path(s.file), s.offset) for s in stored]

    def write_palettes(self, target: Path, palettes: Mapping[str, PackedPalettes]) -> None:
        if palettes:
            stored = {name: self._by_name[name].stored for name in palettes}
            where = {(stored[n].file, stored[n].offset): p for n, p in palettes.items()}
            replace_weights(self._path, target, where)
        else:
            copy_package(self._path, target)
        seal_package(target, self._path.stem, self._license)

    def write_integers(self, target: Path, names: Collection[str], bits: int) -> set[str]:
        if len(self._package.functions) > 1:
            raise ConversionError(
                f"{self._path.name}: linear weights need a package with one function; use palettes "
                "or another layout."
            )
        quantize_linear(self._path, target, names, bits)
        seal_package(target, self._path.stem, self._license)
        return {w.name for w in weights_of(Package.open(target).function())}

    def entries(
        self, folder: Path, info: PackageInfo, bits: int, limit_mb: float | None
    ) -> list[PackageInfo]:
        pieces = self._pieces(folder, info, limit_mb)
        return [described_again(folder, piece, bits) for piece in pieces]

    def _pieces(self, folder: Path, info: PackageInfo, limit_mb: float | None) -> list[PackageInfo]:
        """The entry of a package, or the entries of the pieces it is split into."""
        if limit_mb is None or package_size(folder / info.path) <= limit_mb * 1e6:
            return [info]
        if self._shared:
            raise ConversionError(
                f"{info.path}: is larger than {limit_mb:g} MB and cannot be split, because its "
                "functions share their weights; raise --max-package-mb."
            )
        names = split_to_fit(folder, info.name, limit_mb, self._license)
        return [dataclasses.replace(info, name=n, path=f"{n}.mlpackage") for n in names]

    @cached_property
    def _by_name(self) -> dict[str, StoredWeight]:
        """Each stored weight once; a name that two have is written with its function."""
        found: dict[str, StoredWeight] = {}
        places = set[tuple[str, int]]()
        for function in self._package.functions:
            for weight in weights_of(self._package.function(function)):
                where = weight.stored.file, weight.stored.offset
                if where not in places:
                    places.add(where)
                    name = f"{function}/{weight.name}" if weight.name in found else weight.name
                    found[name] = dataclasses.replace(weight, name=name)
        return found

    @cached_property
    def _ends(self) -> set[str]:
        names = self._package.functions
        return {end for name in names for end in end_convolutions(self._package.function(name))}
