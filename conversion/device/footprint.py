"""The most memory that this process had at once.

Linux: VmHWM, which starts anew with the program (getrusage would carry over what the parent had).
macOS: the lifetime maximum of phys_footprint, the number that the system's limits go by and that
holds what the GPU and the Neural Engine keep for the process; not run on a Mac so far.
"""

from __future__ import annotations

import ctypes
import os
import sys

# struct rusage_info_v4: a UUID of 16 bytes, then 64-bit fields; this many come before the maximum
_INFO_V4, _UUID_FIELDS, _FIELDS, _LIFETIME_MAXIMUM = 4, 2, 40, 28


def peak_bytes() -> int | None:
    """Bytes; None where the system does not say."""
    if sys.platform == "darwin":
        return _lifetime_maximum()
    return _high_water()


def _high_water() -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next((line for line in file if line.startswith("VmHWM:")), None)
    except OSError:
        return None
    return None if line is None else int(line.split()[1]) << 10


def _lifetime_maximum() -> int | None:
    try:
        library = ctypes.CDLL("/usr/lib/libproc.dylib")
    except OSError:
        return None
    fields = (ctypes.c_uint64 * (_UUID_FIELDS + _FIELDS))()
    if library.proc_pid_rusage(os.getpid(), _INFO_V4, ctypes.byref(fields)) != 0:
        return None
    return int(fields[_UUID_FIELDS + _LIFETIME_MAXIMUM])
