"""Times callables in turn within one process, so that a drifting machine affects all alike.

Input: the callables. Output: a `Row`, as plain values for the result files.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mdm_apple.conversion.device.machine import machine as hardware

MANY = 20  # fewest values for a 95th percentile
LEAST = 5  # fewest repetitions for a row in a result file

Basis = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Measured:
    """One value per repetition. cpu_seconds: of all threads of this process; None for others."""

    values: list[float]
    cpu_seconds: list[float] | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles; 0 for a single value."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return high - low

    @property
    def p95(self) -> float | None:
        if len(self.values) < MANY:
            return None
        return statistics.quantiles(self.values, n=20, method="inclusive")[-1]

    def as_json(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "median": self.median,
            "iqr": self.iqr,
            "p95": self.p95,
            "cpu_seconds": self.cpu_seconds,
        }


@dataclass(frozen=True)
class Row:
    """A measurement, alone or with another to compare.

    difference: largest difference of the outputs over the largest value. basis: the clock behind
    `ours` and `other`. figures: further numbers by name, with the unit in the name. model_sha256:
    of the weights on both sides. warm_up: calls before the first that counts. in_process: whether
    this process does the work, so that its peak memory is meaningful.
    """

    name: str
    ours: Measured
    other_name: str | None = None
    other: Measured | None = None
    difference: float | None = None
    note: str = ""
    unit: Literal["s", "bytes"] = "s"
    basis: Basis = "wall"
    figures: dict[str, float] = field(default_factory=dict)
    model_sha256: str | None = None
    warm_up: int = 1
    in_process: bool = True

    @property
    def ratio(self) -> float | None:
        """Ratio of the medians, below 1 if ours is less; None for a measurement alone."""
        return None if self.other is None else self.ours.median / self.other.median

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "basis": self.basis,
            "ours": self.ours.as_json(),
            "other_name": self.other_name,
            "other": None if self.other is None else self.other.as_json(),
            "ratio": self.ratio,
            "difference": self.difference,
            "figures": self.figures,
            "note": self.note,
            "model_sha256": self.model_sha256,
        }


def in_turn(
    *works: Callable[[], Any], repetitions: int, warm_up: int = 1, basis: Basis = "wall"
) -> list[Measured]:
    """Seconds of A B C A B C ...; the warm-up is dropped."""
    wall: list[list[float]] = [[] for _ in works]
    cpu: list[list[float]] = [[] for _ in works]
    for k in range(warm_up + repetitions):
        for side, work in enumerate(works):
            start, cpu_start = time.perf_counter(), time.process_time()
            work()
            end, cpu_end = time.perf_counter(), time.process_time()
            if k >= warm_up:
                wall[side].append(end - start)
                cpu[side].append(cpu_end - cpu_start)
    values = wall if basis == "wall" else cpu
    return [Measured(v, c) for v, c in zip(values, cpu, strict=True)]


def machine() -> dict[str, Any]:
    """The machine and libraries behind the numbers of this process."""
    return hardware() | {
        "threads": torch.get_num_threads(),
        "bf16_instructions": bf16_instructions(),
    }


def bf16_instructions() -> bool | None:
    """Whether the processor multiplies bf16 numbers natively; None if it does not report it."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    return "avx512_bf16" in flags or "amx_bf16" in flags


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of the names and bytes of a network's tensors, in name order."""
    digest = hashlib.sha256()
    state = net.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def largest_difference(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Largest difference over the largest value, for the worst of several outputs."""
    return max(float((w - g).abs().max() / w.abs().max()) for w, g in zip(wanted, got, strict=True))
