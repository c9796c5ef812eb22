"""Where Core ML plans to run the operations of a compiled package. Not run on a Mac so far."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdm_apple.config.types import ComputeUnits

from ..coreml import quiet_coremltools
from ..run.coreml import UNIT_NAMES

DEVICES = ("neuralEngine", "gpu", "cpu")
_KINDS = {
    "MLNeuralEngineComputeDevice": "neuralEngine",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


@dataclass(frozen=True)
class Placement:
    """Per preferred device: number of operations and share of the estimated cost (sum 1)."""

    operations: dict[str, int]
    cost_share: dict[str, float]


def placement_of(compiled: Path, units: ComputeUnits, function: str | None) -> Placement:
    """The system's plan for one function of a .mlmodelc, without operations that have no device."""
    with quiet_coremltools() as coremltools:
        module = importlib.import_module("coremltools.models.compute_plan")
        unit = getattr(coremltools.ComputeUnit, UNIT_NAMES[units])
        plan: Any = module.MLComputePlan.load_from_path(str(compiled), unit)
    functions = plan.model_structure.program.functions
    body = functions[function] if function is not None else next(iter(functions.values()))
    return read_plan(plan, body.block.operations)


def read_plan(plan: Any, operations: Any) -> Placement:
    """Count the operations in a plan (an MLComputePlan or an object with its interface)."""
    counts: Counter[str] = Counter()
    costs: Counter[str] = Counter()
    for operation in operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:
            continue
        device = _KINDS[type(usage.preferred_compute_device).__name__]
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        counts[device] += 1
        costs[device] += 0.0 if cost is None else cost.weight  # type: ignore[operator]
    total = sum(costs.values())
    return Placement(
        {device: counts[device] for device in DEVICES},
        {device: costs[device] / total if total else 0.0 for device in DEVICES},
    )
