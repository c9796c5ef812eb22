"""Connected shapes in a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Component:
    """Pixels that touch each other by a side or a corner: their number and their bounding box.

    The box goes from (left, top) to below (right, bottom).
    """

    area: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def longer(self) -> int:
        return max(self.right - self.left, self.bottom - self.top)


def components(mask: NDArray[np.bool_]) -> list[Component]:
    """The connected shapes of a mask (H, W), in the order of their topmost rows."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    runs = list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
    owner = list(range(len(runs)))

    def root(run: int) -> int:
        while owner[run] != run:
            owner[run] = owner[owner[run]]
            run = owner[run]
        return run

    above = 0  # the first run of the row above that may still touch one
    for here, (row, start, stop) in enumerate(runs):
        while above < here and (
            runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start)
        ):
            above += 1
        other = above
        while other < here and runs[other][0] == row - 1 and runs[other][1] <= stop:
            one, two = sorted((root(here), root(other)))
            owner[two] = one
            other += 1
    found: dict[int, list[int]] = {}
    for run, (row, start, stop) in enumerate(runs):
        box = found.setdefault(root(run), [0, start, row, stop, row + 1])
        box[0] += stop - start
        box[1], box[3], box[4] = min(box[1], start), max(box[3], stop), row + 1
    return [Component(*box) for box in found.values()]
