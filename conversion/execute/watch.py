"""Watches the numbers of a run: how large they become, and where they stop being finite."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """One value: the operation that made it, its largest finite magnitude, its non-finite count."""

    operation: str
    name: str
    largest: float
    nonfinite: int


@dataclass
class Watch:
    """Pass one to a `Program` call; `ranges` then gets an entry per computed floating value."""

    ranges: list[Range] = field(default_factory=list[Range])

    def see(self, operation: str, name: str, value: Tensor) -> None:
        if not value.is_floating_point() or value.numel() == 0:
            return
        finite = torch.isfinite(value)
        bad = value.numel() - int(finite.sum())
        kept = value[finite] if bad else value
        largest = float(kept.abs().amax()) if kept.numel() else 0.0
        self.ranges.append(Range(operation, name, largest, bad))

    def by_value(self) -> list[Range]:
        """One entry per value over all calls, in first-call order: the largest, summed counts."""
        merged: dict[str, Range] = {}
        for new in self.ranges:
            old = merged.get(new.name, new)
            bad = new.nonfinite if old is new else old.nonfinite + new.nonfinite
            largest = max(old.largest, new.largest)
            merged[new.name] = Range(new.operation, new.name, largest, bad)
        return list(merged.values())

    @property
    def largest(self) -> Range | None:
        """The value with the largest finite magnitude."""
        return max(self.ranges, key=lambda r: r.largest, default=None)

    @property
    def first_nonfinite(self) -> Range | None:
        """The first value with an infinity or NaN, where the search for the cause starts."""
        return next((r for r in self.ranges if r.nonfinite), None)
