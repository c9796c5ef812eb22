"""Runs packages with Core ML on chosen compute units. macOS only; not run on a Mac so far."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import ComputeUnits

from ..coreml import quiet_coremltools
from ..errors import ConversionError
from ..execute import ExecutionError, Package, TensorType, Watch
from ..execute.program import output_types
from .packages import Load, Values

UNITS: tuple[ComputeUnits, ...] = get_args(ComputeUnits)

# coremltools' names for them
UNIT_NAMES: dict[ComputeUnits, str] = {
    "all": "ALL",
    "cpuOnly": "CPU_ONLY",
    "cpuAndGPU": "CPU_AND_GPU",
    "cpuAndNeuralEngine": "CPU_AND_NE",
}


def core_ml(units: ComputeUnits | None = None) -> Load:
    """A loader of packages with Core ML. Raises ConversionError on anything but macOS.

    Args:
        units: for all packages; None takes the manifest's proposal for each.
    """
    if sys.platform != "darwin":
        raise ConversionError(
            "coreml: runs on macOS only; use reference, which runs a bundle on any system."
        )
    return lambda path, function, proposed: CoreMLProgram(path, units or proposed, function)


class CoreMLProgram:
    """A package compiled and loaded by Core ML; compiling may take minutes."""

    def __init__(
        self,
        path: Path,
        units: ComputeUnits,
        function: str | None = None,
        compiled: Path | None = None,
    ) -> None:
        """function: for a package with several. compiled: its output of `compile_package`.

        Raises ExecutionError if Core ML refuses the package.
        """
        self._path, package = path, Package.open(path)
        self._inputs = package.function(function).inputs
        self._outputs = output_types(package.function(function))
        with quiet_coremltools() as coremltools:
            unit = getattr(coremltools.ComputeUnit, UNIT_NAMES[units])
            try:
                kind = coremltools.models.MLModel
                if compiled is not None:
                    kind = coremltools.models.CompiledMLModel
                self._model: Any = kind(
                    str(compiled or path), compute_units=unit, function_name=function
                )
            except (RuntimeError, ValueError) as error:
                raise ExecutionError(f"{path}: Core ML cannot load it ({_first(error)}).") from None

    def __call__(self, inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None) -> Values:
        """Outputs as float32, or in their declared type; a watch sees only the outputs."""
        given = {name: typed(inputs[name], kind) for name, kind in self._inputs.items()}
        try:
            found: dict[str, Any] = self._model.predict(given)
        except RuntimeError as error:
            raise ExecutionError(f"{self._path}: Core ML failed ({_first(error)}).") from None
        return received(found, self._outputs, watch)


def compile_package(path: Path, target: Path) -> Path:
    """Compile a package to `target` unless it exists. Raises ExecutionError.

    The system specialises a compiled model for a compute unit once, and recognises it by its path.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"partial-{target.name}")
    with quiet_coremltools() as coremltools:
        try:
            coremltools.models.utils.compile_model(str(path), str(partial))
            partial.rename(target)
        except (RuntimeError, ValueError, OSError) as error:
            raise ExecutionError(f"{path}: Core ML cannot compile it ({_first(error)}).") from None
    return target


def typed(array: NDArray[Any], kind: TensorType) -> NDArray[Any]:
    """An input in the type that the package declares."""
    dtype = {"fp16": np.float16, "fp32": np.float32}.get(kind.dtype, np.int32)
    return np.ascontiguousarray(array, dtype)


def received(
    found: Mapping[str, Any], declared: Mapping[str, TensorType], watch: Watch | None
) -> Values:
    """The outputs of a prediction, in the form that the executor returns."""
    import torch

    out: Values = {}
    for name, kind in declared.items():
        value = np.asarray(found[name])
        out[name] = value.astype(np.float32) if kind.is_float else value
        if watch is not None and kind.is_float:
            watch.see("output", name, torch.from_numpy(out[name]))
    return out


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
