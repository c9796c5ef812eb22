"""The process that decodes files of clips; `decoder` starts it with `python -m`.

A request is a line of JSON on stdin: "path", and what is asked of it as `decode.asked_of` reads it.
The answer goes to stdout: a line of JSON, and behind it the pixels as raw bytes.
The arguments are the most bytes of address space (0: no limit) and the most seconds of processor
time for a file. Nothing can be written, so that nothing is left behind when a decoder ends the
process. It ends when its parent does, at the latest when the file is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from mdm_apple.child_limits import confined, limit_processor_time
from mdm_apple.data.clips.decode import Asked, asked_of, decode
from mdm_apple.data.clips.limits import StillError, UnfitFileError
from mdm_apple.data.read_picture import OF_THE_MACHINE
from mdm_apple.errors import MdmError


def main() -> None:
    memory, seconds = map(int, sys.argv[1:])
    answers = confined(memory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(BrokenPipeError):  # the parent has ended
        for line in sys.stdin.buffer:
            request = json.loads(line)
            limit_processor_time(seconds)
            header, data = _answer(Path(request["path"]), asked_of(request))
            answers.write(json.dumps(header).encode() + b"\n")
            answers.write(data)
            answers.flush()


def _answer(path: Path, asked: Asked) -> tuple[dict[str, Any], bytes]:
    try:
        found = decode(path, asked)
    except UnfitFileError as error:
        still = isinstance(error, StillError)
        return {"unfit": str(error), "remedy": error.remedy, "still": still}, b""
    except MdmError as error:
        return {"sentence": str(error)}, b""
    except MemoryError:
        return {"memory": True}, b""
    except Exception as error:  # decoders fail on hostile files in every possible way
        number = error.errno if isinstance(error, OSError) else None
        if number in OF_THE_MACHINE:
            return {"machine": os.strerror(number or 0)}, b""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"refused": lines[0]}, b""
    shape = list(found.pixels.shape)
    return {"shape": shape, "size": found.size, "found": found.found}, found.pixels.tobytes()


if __name__ == "__main__":
    main()
