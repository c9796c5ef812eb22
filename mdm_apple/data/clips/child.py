"""The process that decodes files of clips; `decoder` starts it with `python -m`.

A request is a line of JSON on stdin: "path", and what a model takes (see `decode.Wanted`). The
answer goes to stdout: a line of JSON, and behind it the canvases as raw bytes.
The arguments are the most bytes of address space (0: no limit) and the most seconds of processor
time for a file. Nothing can be written, so that nothing is left behind when a decoder ends the
process. It ends when its parent does, at the latest when the file is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from mdm_apple.data.clips.decode import Decoded, Wanted, decode
from mdm_apple.data.clips.limits import StillError, UnfitFileError
from mdm_apple.data.read_picture import OF_THE_MACHINE


def main() -> None:
    memory, seconds = map(int, sys.argv[1:])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps library output out of the answers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the parent's, and its end is noticed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if memory:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        memory = memory if most == resource.RLIM_INFINITY else min(memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(BrokenPipeError):  # the parent has ended
        for line in sys.stdin.buffer:
            asked = json.loads(line)
            path = Path(asked.pop("path"))
            _limit_processor_time(seconds)
            header, data = _answer(path, Wanted(**asked))
            answers.write(json.dumps(header).encode() + b"\n")
            answers.write(data)
            answers.flush()


def _limit_processor_time(seconds: int) -> None:
    """So many seconds from now on; then the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(used.ru_utime + used.ru_stime) + seconds
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def _answer(path: Path, wanted: Wanted) -> tuple[dict[str, Any], bytes]:
    try:
        found: Decoded = decode(path, wanted)
    except UnfitFileError as error:
        still = isinstance(error, StillError)
        return {"unfit": str(error), "remedy": error.remedy, "still": still}, b""
    except MemoryError:
        return {"memory": True}, b""
    except Exception as error:  # decoders fail on hostile files in every possible way
        number = error.errno if isinstance(error, OSError) else None
        if number in OF_THE_MACHINE:
            return {"machine": os.strerror(number or 0)}, b""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"refused": lines[0]}, b""
    shape = list(found.canvases.shape)
    return {"shape": shape, "size": found.size, "found": found.found}, found.canvases.tobytes()


if __name__ == "__main__":
    main()
