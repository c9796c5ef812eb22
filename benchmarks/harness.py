"""Two callables timed in turn within one process, so that a drifting machine hits both alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Pair:
    """Seconds of each repetition, ours and the other's, and the ratio of their medians."""

    name: str
    other: str  # what ours is compared with
    ours_s: list[float]
    other_s: list[float]
    difference: float  # largest difference of the outputs over the largest value
    note: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours_s) / statistics.median(self.other_s)

    def line(self) -> str:
        ours, other = statistics.median(self.ours_s), statistics.median(self.other_s)
        return (
            f"{self.name:34} {ours:8.3f} s  {self.other:12} {other:8.3f} s  "
            f"ratio {self.ratio:5.2f}  difference {self.difference:.1e}  {self.note}"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": round(self.ratio, 4)}


def in_turn(
    ours: Callable[[], Any],
    other: Callable[[], Any],
    repetitions: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds of A B A B ... by a clock, by default that on the wall; the warm-up is dropped."""
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(warm_up + repetitions):
        for side, work in zip(times, (ours, other), strict=True):
            start = clock()
            work()
            if k >= warm_up:
                side.append(clock() - start)
    return times


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    flags = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        flags = ""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bf16_instructions": "avx512_bf16" in flags or "amx_bf16" in flags,
    }
