"""A bundle's packages once more, computing in fp32: shows the graph without the rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdm_apple.config.types import ComputeUnits

from ..coreai.packages import write_package
from ..layouts.parts import Part
from ..run.packages import Load, Runnable


class Fp32Packages:
    """Makes each package when it is first asked for; see `run.packages.Load`.

    Args:
        parts: those that a bundle was made from. folder: for the packages. run: runs such files.
        as_core_ml: see `coreai.lower`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        folder: Path,
        run: Load,
        as_core_ml: bool = False,
    ) -> None:
        self._parts, self._folder = parts, folder
        self._run, self._as_core_ml = run, as_core_ml

    def __call__(self, path: Path, function: str | None, proposed: ComputeUnits) -> Runnable:
        made = self._folder / path.name
        if not made.exists():
            shared = [part for part in self._parts if part.file_stem == path.stem]
            write_package(shared, made, None, "fp32", self._as_core_ml)
        return self._run(made, function, proposed)
