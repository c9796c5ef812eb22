"""The weights of a .aimodel, and the package with them stored smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.errors import system_reason

from ..bundle.folder import Bundle
from ..bundle.manifest import PackageInfo
from ..coreai.compressed import store_integers, store_palettes
from ..coreai.program import editing, open_program
from ..coreai.seal import save_sealed
from ..coreai.weights import ProgramWeight, end_convolutions, weights_of
from ..errors import ConversionError
from ..package_file.seal import copy_package, package_size
from ..package_file.weightfile import WeightFileWriter, pack
from .histogram import Halves
from .palette_jobs import PackedPalettes, Place
from .scaled_integers import scaled_integers


class CoreAIPackage:
    """See `weighted_package.WeightedPackage`. Needs coreai-core; torch is not used."""

    def __init__(self, bundle: Bundle, info: PackageInfo) -> None:
        self._path = bundle.file(info.path)
        self._license = bundle.manifest.provenance.license

    @cached_property
    def _program(self) -> Any:
        return open_program(self._path)

    @property
    def weights(self) -> list[ProgramWeight]:
        return list(self._by_name.values())

    @property
    def ends(self) -> set[str]:
        return self._ends

    def numbers(self, name: str) -> Halves:
        weight = self._by_name[name]
        return weight.constants[0].read().view(np.float16).reshape(weight.shape)

    def places(self, names: Sequence[str], scratch: Path) -> list[Place]:
        path = scratch / f"{self._path.stem}.bin"
        try:
            writer = WeightFileWriter(path)
            try:
                return [
                    (path, writer.add(self.numbers(name), "fp16", self._by_name[name].elements))
                    for name in names
                ]
            finally:
                writer.close()
        except OSError as error:
            raise ConversionError(f"{path}: cannot be written; {system_reason(error)}") from None

    def write_palettes(self, target: Path, palettes: Mapping[str, PackedPalettes]) -> None:
        def store(weight: ProgramWeight) -> None:
            found = palettes[weight.name]
            store_palettes(weight, found.indices, found.bits, found.values, found.axis)

        if palettes:
            self._rewrite(target, palettes, store)
        else:
            copy_package(self._path, target)

    def write_integers(self, target: Path, names: Collection[str], bits: int) -> set[str]:
        def store(weight: ProgramWeight) -> None:
            assert weight.out_axis is not None, "such weights are refused"
            assert weight.in_axis is not None, "such weights are refused"
            numbers = self.numbers(weight.name)
            made = scaled_integers(numbers, weight.out_axis, weight.in_axis, bits)
            codes = made.numbers.view(np.uint8).reshape(-1) & np.uint8((1 << bits) - 1)
            store_integers(weight, pack(codes, bits), bits, made.scale)

        self._rewrite(target, names, store)
        return set()

    def entries(
        self, folder: Path, info: PackageInfo, bits: int, limit_mb: float | None
    ) -> list[PackageInfo]:
        size = package_size(folder / info.path)
        if limit_mb is not None and size > limit_mb * 1e6:
            raise ConversionError(
                f"{info.path}: is larger than {limit_mb:g} MB, and Core AI packages are not split; "
                "raise --max-package-mb, or leave it out."
            )
        return [dataclasses.replace(info, weight_bits=bits, bytes=size)]

    def _rewrite(
        self, target: Path, names: Collection[str], store: Callable[[ProgramWeight], None]
    ) -> None:
        """Write the program with some weights stored another way."""
        program = open_program(self._path)  # the one that is read stays as it is
        with editing(program):
            for weight in weights_of(program):
                if weight.name in names:
                    store(weight)
        save_sealed(program, target, self._license)

    @cached_property
    def _by_name(self) -> dict[str, ProgramWeight]:
        return {weight.name: weight for weight in weights_of(self._program)}

    @cached_property
    def _ends(self) -> set[str]:
        return end_convolutions(self._program)
