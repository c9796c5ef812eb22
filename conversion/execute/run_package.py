"""Runs anybody's package once, from files to files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.config.strict_json import unknown_name
from mdm_apple.config.types import ExecutorPrecision

from .errors import ExecutionError
from .input_files import read_input
from .package import Package
from .result_files import write_results

SHOWN_LABELS = 5


@dataclass(frozen=True)
class Result:
    """One output and its file.

    shape, dtype, low, high: of an array, its finite values; None for labels. nonfinite: how many
    values are infinite or NaN. label: of a classifier. best: its first labels with their numbers.
    """

    name: str
    file: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    low: float | None = None
    high: float | None = None
    nonfinite: int = 0
    label: str | int | None = None
    best: tuple[tuple[str | int, float], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_package(
    path: Path,
    files: Mapping[str, Path],
    out: Path,
    function: str | None = None,
    precision: ExecutorPrecision = "fp32",
) -> list[Result]:
    """Run a package on the files given by input name, and write its outputs into the folder `out`.

    Raises MdmError for a package that cannot be run and for files that do not fit.
    """
    package = Package.open(path)
    features = package.features(function)
    for name in files:
        if name not in features.inputs:
            raise ExecutionError(f"input {name!r}: unknown. {unknown_name(name, features.inputs)}")
    for name, feature in features.inputs.items():
        if name not in files and feature.default is None:
            raise ExecutionError(
                f"input {name!r}: missing; expected {feature}. Add --input {name}=FILE."
            )
    values = {name: read_input(file, features.inputs[name]) for name, file in files.items()}
    results = package.load(function, precision)(values)
    written = write_results(out, results, features.outputs)
    return [_described(name, value, written[name].name) for name, value in results.items()]


def _described(name: str, value: Any, file: str) -> Result:
    if isinstance(value, dict):
        by_label: dict[str | int, float] = value
        best = sorted(by_label.items(), key=lambda pair: -pair[1])[:SHOWN_LABELS]
        return Result(name, file, best=tuple(best))
    if not isinstance(value, np.ndarray):
        return Result(name, file, label=value)
    finite = value[np.isfinite(value)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Result(
        name, file, value.shape, str(value.dtype), low, high, int(value.size - finite.size)
    )
