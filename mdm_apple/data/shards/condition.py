"""Which samples an index keeps: `side >= 256 and pwatermark < 0.8`, and nothing else is understood.

Input: the text, and the names of the scores. Output: for rows, whether each is kept.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdm_apple.data.dataset import DataError
from mdm_apple.data.shards.rows import as_table

SIDES = ("side", "width", "height")

_COMPARISONS: dict[str, Callable[[NDArray[np.float64], float], NDArray[np.bool_]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_TERM = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*(<=|>=|==|!=|<|>)\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
)


@dataclass(frozen=True)
class Condition:
    """terms: (column, comparison, number); all must hold. scores: columns besides the sides."""

    terms: tuple[tuple[str, str, float], ...]
    scores: tuple[str, ...]

    @staticmethod
    def of(written: str, scores: Sequence[str]) -> Condition:
        """From its text. Raises DataError for anything else than comparisons joined by `and`."""
        terms: list[tuple[str, str, float]] = []
        for part in re.split(r"\band\b", written):
            found = _TERM.fullmatch(part)
            if found is None:
                raise DataError(
                    f"where: expected comparisons joined by and, such as 'side >= 256', got "
                    f"{part.strip()[:60]!r}."
                )
            column, comparison, number = found.groups()
            if column not in (*SIDES, *scores):
                known = ", ".join((*SIDES, *scores))
                raise DataError(
                    f"where: the index has the columns {known}, and no {column}; name a number of "
                    "the .json with --score."
                )
            terms.append((column, comparison, float(number)))
        return Condition(tuple(terms), tuple(scores))

    def kept(self, rows: bytes | bytearray, size: int) -> bytes:
        """The rows (of `size` bytes) for which it holds; a score that is not there fulfils none."""
        table = as_table(rows, size)
        keep = np.ones(len(table), bool)
        for column, comparison, number in self.terms:
            values, limit = self._column(table, column), np.float64(number)
            if column not in SIDES:  # scores are rounded, so the number is rounded as they are
                with np.errstate(over="ignore"):
                    limit = np.float64(np.float16(number))
            keep &= _COMPARISONS[comparison](values, float(limit)) & ~np.isnan(values)
        return np.frombuffer(rows, np.uint8).reshape(-1, size)[keep].tobytes()

    def _column(self, table: NDArray[np.void], column: str) -> NDArray[np.float64]:
        if column == "side":
            return np.minimum(table["width"], table["height"]).astype(np.float64)
        if column in SIDES:
            return table[column].astype(np.float64)
        name = ("score", "second_score")[self.scores.index(column)]
        return table[name].astype(np.float64)
