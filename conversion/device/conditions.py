"""Whether a machine is fit for measuring: its thermal state and its low-power mode.

Read from NSProcessInfo through the Objective-C runtime (not run on a Mac so far); unknown on other
systems.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from dataclasses import dataclass
from typing import Literal

Thermal = Literal["nominal", "fair", "serious", "critical"]
_STATES: tuple[Thermal, ...] = ("nominal", "fair", "serious", "critical")


@dataclass(frozen=True)
class Conditions:
    """None: the system does not report it."""

    thermal: Thermal | None
    low_power: bool | None


def conditions() -> Conditions:
    """The conditions at this moment."""
    if sys.platform != "darwin":
        return Conditions(None, None)
    state, low = _ask("thermalState"), _ask("isLowPowerModeEnabled")
    known = state is not None and 0 <= state < len(_STATES)
    return Conditions(
        _STATES[state] if known and state is not None else None,
        None if low is None else bool(low & 1),  # a BOOL in one byte of the register
    )


def violations(before: Conditions, after: Conditions) -> list[str]:
    """Reasons to doubt numbers measured between the two moments, as clauses."""
    found: list[str] = []
    if before.thermal not in ("nominal", None):
        found.append(f"the thermal state was {before.thermal} at the start, not nominal")
    if before.low_power:
        found.append("low-power mode was on at the start")
    if after.thermal in ("serious", "critical"):
        found.append(f"the thermal state was {after.thermal} at the end")
    if after.low_power and not before.low_power:
        found.append("low-power mode was switched on during the measurement")
    return found


def _ask(question: str) -> int | None:
    """An integer property of NSProcessInfo; None where the runtime cannot be reached."""
    try:
        runtime = ctypes.CDLL(ctypes.util.find_library("objc") or "libobjc.dylib")
        ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
    except OSError:
        return None
    runtime.objc_getClass.restype = runtime.sel_registerName.restype = ctypes.c_void_p
    send = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
        ("objc_msgSend", runtime)
    )
    number = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)(
        ("objc_msgSend", runtime)
    )
    kind = runtime.objc_getClass(b"NSProcessInfo")
    info = send(kind, runtime.sel_registerName(b"processInfo"))
    return None if not info else int(number(info, runtime.sel_registerName(question.encode())))
