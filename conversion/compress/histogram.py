"""Counts fp16 numbers: a tensor of any size becomes at most 65,536 values and their counts.

fp16 codes read as integers do not ascend with the numbers (for negative numbers they descend), so
everything here is indexed by rank: a number's place among all fp16 numbers in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConversionError

Halves = NDArray[np.float16]
Doubles = NDArray[np.float64]

CODES = 1 << 16
SORTED_AT_MOST = 1 << 14  # numbers; sorting so few is faster than counting 65,536 codes

_CODES = np.arange(CODES, dtype=np.uint32).astype(np.uint16)
RANKS = np.where(_CODES & 0x8000, ~_CODES, _CODES | 0x8000).astype(np.uint16)  # by code
CODE_AT = np.argsort(RANKS).astype(np.uint16)  # by rank
VALUE_AT = CODE_AT.view(np.float16).astype(np.float64)  # by rank; infinities and NaN at both ends
FIRST, LAST = 0x400 - 1, CODES - 0x400  # ranks strictly between them are finite


@dataclass(frozen=True)
class Histogram:
    """The distinct values of a group of numbers, ascending, with running sums before each value.

    values (n,); mass, moment, square (n + 1,): the count of the numbers before a value, their sum,
    and the sum of their squares. codes: fp16 codes of the values.
    """

    values: Doubles
    codes: NDArray[np.uint16]
    mass: Doubles
    moment: Doubles
    square: Doubles


def histogram(numbers: Halves) -> Histogram:
    """Count finite fp16 numbers. Raises ConversionError for an infinity or NaN."""
    codes = np.ascontiguousarray(numbers).reshape(-1).view(np.uint16)
    if codes.size <= SORTED_AT_MOST:
        found, counts = np.unique(RANKS[codes], return_counts=True)
    else:
        by_rank = np.bincount(codes, minlength=CODES)[CODE_AT]
        found = np.flatnonzero(by_rank)
        counts = by_rank[found]
    if found.size and (found[0] <= FIRST or found[-1] >= LAST):
        raise ConversionError("a weight is infinite or NaN; convert the model again.")
    values, weights = VALUE_AT[found], counts.astype(np.float64)
    return Histogram(
        values,
        CODE_AT[found],
        _sums_before(weights),
        _sums_before(weights * values),
        _sums_before(weights * values * values),
    )


def _sums_before(terms: Doubles) -> Doubles:
    return np.concatenate([[0.0], np.cumsum(terms)])
