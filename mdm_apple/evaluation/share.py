"""A share of hits, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 1.959964  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Share:
    """Hits among a number of pictures, with Wilson's 95 % interval.

    chance: the share of hits if the same pictures belonged to other captions of the row.
    """

    hits: int
    count: int
    chance: float

    @property
    def share(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Source: Wilson 1927."""
        n, z, p = self.count, CONFIDENCE, self.share
        middle = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
