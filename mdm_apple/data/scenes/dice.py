"""Choices from a fixed block of random numbers, so that a scene never takes more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")
BLOCK = 40  # uniform numbers; more than any scene needs


class Dice:
    """Takes BLOCK uniform numbers in [0, 1) from a stream, and makes its choices from them."""

    def __init__(self, stream: np.random.Generator) -> None:
        self._left: list[float] = stream.random(BLOCK).tolist()[::-1]

    def below(self, count: int) -> int:
        """0 to count - 1, all equally likely; 0 if count is less."""
        return int(self._left.pop() * max(1, count))

    def between(self, low: int, high: int) -> int:
        """low to high, both included."""
        return low + self.below(high - low + 1)

    def pick(self, among: Sequence[Value]) -> Value:
        """One of these."""
        return among[self.below(len(among))]

    def weighed(self, weights: Mapping[Value, int]) -> Value:
        """One of the keys, each as likely as its weight says."""
        point = self.below(sum(weights.values()))
        for value, weight in weights.items():
            if point < weight:
                return value
            point -= weight
        raise AssertionError("the weights add up to more than any point")

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent
