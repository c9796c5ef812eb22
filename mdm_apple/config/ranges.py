"""How a number out of its range is refused: in one sentence, with name, range and value."""

from __future__ import annotations

import math

from mdm_apple.errors import ConfigError, MdmError


def in_range(
    name: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    what: str = "",
    error: type[MdmError] = ConfigError,
) -> None:
    """Raise `error` unless the value is a number from low to high; None, not given, passes.

    Args:
        above: low itself is refused. below: high itself is, or infinity where there is no high.
        what: follows the range in the sentence, as "pixels".
    """
    if value is None:
        return
    # written so that NaN, which compares as false, is refused
    large_enough = value > low if above else value >= low
    if not (large_enough and (value < high if below else value <= high)):
        expected = _words(low, high, above, below) + (what and f" {what}")
        raise error(f"{name}: expected {expected}, got {value}.")


def _words(low: float, high: float, above: bool, below: bool) -> str:
    if high == math.inf:
        words = f"more than {low}" if above else f"{low} or more"
        return f"a finite number, {words}" if below else words
    if below:
        return f"between {low} and {high}" if above else f"from {low} to below {high}"
    return f"more than {low} up to {high}" if above else f"{low} to {high}"
