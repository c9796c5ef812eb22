"""The limits of a process that reads files from outside; it sets them itself, before it reads any.

Its requests come on stdin and its answers go to stdout; it writes no core file.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import BinaryIO


def confined(memory: int) -> BinaryIO:
    """Confine this process. Returns where answers go.

    What libraries print goes to stderr. Ctrl-C and its like are the parent's, whose end is noticed.

    Args:
        memory: most bytes of address space; 0: no limit.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        limit = _within(resource.RLIMIT_AS, memory)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return answers


def limit_processor_time(seconds: int) -> None:
    """So many seconds from now on; then the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = _within(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _within(limit: int, asked: int) -> int:
    """What is asked of a limit of the system, or the most that it allows."""
    _, most = resource.getrlimit(limit)
    return asked if most == resource.RLIM_INFINITY else min(asked, most)
