"""Locks between processes; the system releases them however a process ends."""

from __future__ import annotations

import errno
import fcntl


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder for this process; False if another has it.

    Some network drives support no locks. There, everybody gets one. Raises OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
    return True
