"""A bundle's packages once more, computing in fp32: shows the graph without the rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdm_apple.config.types import ComputeUnits

from ..layouts.parts import Part
from .packages import write_package
from .runtime import AppleFunction, AppleRuntime


class Fp32Packages:
    """Makes each package when it is first asked for; see `run.packages.Load`.

    Args:
        parts: those that a bundle was made from. folder: for the packages. as_core_ml: see `lower`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        folder: Path,
        runtime: AppleRuntime,
        as_core_ml: bool = False,
    ) -> None:
        self._parts, self._folder = parts, folder
        self._runtime, self._as_core_ml = runtime, as_core_ml

    def __call__(self, path: Path, function: str | None, proposed: ComputeUnits) -> AppleFunction:
        made = self._folder / path.name
        if not made.exists():
            shared = [part for part in self._parts if part.file_stem == path.stem]
            write_package(shared, made, None, "fp32", self._as_core_ml)
        return self._runtime(made, function, proposed)
