"""The engine that runs a cell's packages: Apple's on some compute units, or what stands in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdm_apple.config.types import ExecutorPrecision

from ..bundle.folder import Bundle
from ..coreai.runtime import AppleRuntime
from ..errors import ConversionError
from ..footprint import peak_bytes
from ..run.coreml import CoreMLProgram, compile_package
from ..run.packages import Load, executor
from .cells import Units
from .placement import Placement, placement_of


@dataclass(frozen=True)
class Engine:
    """load: the loader to measure. cpu: the same on the CPU alone, as a floor; None if load is it.

    placement: where the system plans to run the operations of a package (its path, its function);
    None: not known. forget: releases what is loaded, so that the next load is whole. memory: peak
    bytes of all processes that take part.
    """

    name: Literal["coreml", "coreai", "executor", "interpreter"]
    load: Load
    cpu: Load | None = None
    placement: Callable[[Path, str | None], Placement] | None = None
    forget: Callable[[], None] = lambda: None
    memory: Callable[[], int | None] = peak_bytes


def engine_for(units: Units, bundle: Bundle, precision: ExecutorPrecision, cache: Path) -> Engine:
    """cache: folder for compiled packages, because the system remembers them by path.

    Raises ConversionError for compute units on anything but macOS.
    """
    if units == "executor":
        return Engine("executor", executor(precision))
    if units == "interpreter":
        _require_fp16(precision)
        return _core_ai("interpreter", AppleRuntime(), None)
    if sys.platform != "darwin":
        raise ConversionError(
            "compute-units: need macOS; leave the option out to run what stands in here."
        )
    if bundle.manifest.format == "coreai":
        _require_fp16(precision)
        alone = None if units == "cpuOnly" else AppleRuntime("cpuOnly")
        return _core_ai("coreai", AppleRuntime(units), alone)
    folder = cache / bundle.manifest.digest

    def compiled(path: Path) -> Path:
        return compile_package(path, folder / f"{path.stem}.mlmodelc")

    return Engine(
        "coreml",
        lambda path, function, _: CoreMLProgram(path, units, function, compiled(path)),
        None
        if units == "cpuOnly"
        else lambda path, function, _: CoreMLProgram(path, "cpuOnly", function, compiled(path)),
        lambda path, function: placement_of(compiled(path), units, function),
    )


def _require_fp16(precision: ExecutorPrecision) -> None:
    if precision != "fp16":
        raise ConversionError("precision: Core AI packages compute in fp16; leave it out.")


def _core_ai(
    name: Literal["coreai", "interpreter"], runtime: AppleRuntime, cpu: AppleRuntime | None
) -> Engine:
    """Apple's runtime in its child, which keeps what it has loaded as long as it lives.

    Its plan of devices has no public estimate of cost, so placement is not measured.
    """

    def memory() -> int | None:
        own, child = peak_bytes(), runtime.peak_bytes
        return None if own is None or child is None else own + child

    return Engine(name, runtime, cpu, forget=runtime.start_afresh, memory=memory)
