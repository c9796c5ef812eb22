"""The peak memory of a process of this user.

Linux: VmHWM, which starts afresh with the program (getrusage would carry over the parent's peak).
macOS: the lifetime maximum of phys_footprint, on which the system's limits are based and which
includes memory held for the process by the GPU and the Neural Engine; not run on a Mac so far.
"""

from __future__ import annotations

import ctypes
import os
import sys

# struct rusage_info_v4: a UUID of 16 bytes, then 64-bit fields; this many come before the maximum
_INFO_V4, _UUID_FIELDS, _FIELDS, _LIFETIME_MAXIMUM = 4, 2, 40, 28


def peak_bytes(process: int | None = None) -> int | None:
    """Peak memory in bytes; None if the system does not report it, or the process has ended.

    process: its number; None: this one.
    """
    number = os.getpid() if process is None else process
    return _lifetime_maximum(number) if sys.platform == "darwin" else _high_water(number)


def _high_water(process: int) -> int | None:
    try:
        with open(f"/proc/{process}/status", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("VmHWM:")), None)
    except OSError:
        return None
    return None if line is None else int(line.split()[1]) << 10


def _lifetime_maximum(process: int) -> int | None:
    try:
        library = ctypes.CDLL("/usr/lib/libproc.dylib")
    except OSError:
        return None
    fields = (ctypes.c_uint64 * (_UUID_FIELDS + _FIELDS))()
    if library.proc_pid_rusage(process, _INFO_V4, ctypes.byref(fields)) != 0:
        return None
    return int(fields[_UUID_FIELDS + _LIFETIME_MAXIMUM])
