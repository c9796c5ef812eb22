"""A process that decodes files of clips in place of this one, which a bad file would end.

It has limits of memory (on Linux), of processor time for each file and of time on the clock. One
process decodes file after file, and a new one takes its place when a file has ended it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.decode import Asked, Decoded, as_request, most_bytes
from mdm_apple.data.clips.limits import CPU_SECONDS, MEMORY, REPAIR, SHRINK
from mdm_apple.data.dataset import BadPictureError, DataError
from mdm_apple.data.read_picture import shown
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError

COMMAND = (sys.executable, "-P", "-m", "mdm_apple.data.clips.child")
ROOT = Path(__file__).parents[3]
WALL_SECONDS = 300.0  # for a file, on a machine that does much else
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # each takes memory


class StillPictureError(BadPictureError):
    """A picture where a clip was expected."""


@contextmanager
def decoders(count: int, memory: int = MEMORY, seconds: int = CPU_SECONDS) -> Generator[Decoders]:
    """Up to so many processes; all have ended when the block has.

    Args:
        memory: bytes of address space of each. seconds: of processor time for a file.
    """
    found = Decoders([_Decoder(memory, seconds) for _ in range(count)])
    try:
        yield found
    finally:
        found.end()


class Decoders:
    """Decodes files in the first process that is free; threads may share it."""

    def __init__(self, processes: Sequence[_Decoder]) -> None:
        self._all = processes
        self._free: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._free.put(decoder)

    def decode(self, path: Path, asked: Asked) -> Decoded:
        """The clips of a file, or the frames that are asked for.

        Raises BadPictureError for a file that cannot be decoded, StillPictureError for a picture;
        FileError, DataError where the machine failed.
        """
        decoder = self._free.get()
        try:
            return decoder.decode(path, asked)
        finally:
            self._free.put(decoder)

    def numbers(self) -> list[int]:
        """The numbers of the processes that run."""
        return [decoder.number for decoder in self._all if decoder.number is not None]

    def end(self) -> None:
        """End all processes; called once no thread decodes any more."""
        for decoder in self._all:
            decoder.end()


class _Decoder:
    """One process, which is started for the first file that it is given."""

    def __init__(self, memory: int, seconds: int) -> None:
        self._memory, self._seconds = memory, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._late = False

    @property
    def number(self) -> int | None:
        """The process number; None while there is no process."""
        return None if self._process is None else self._process.pid

    def decode(self, path: Path, asked: Asked) -> Decoded:
        """See `Decoders.decode`."""
        try:
            answer = self._ask(path, asked)
        except BaseException:  # an interrupted answer would be taken for that of the next file
            self.end()
            raise
        if answer is None:
            error = self._without_answer(path)
            self.end()
            raise error
        header, pixels = answer
        if "shape" in header:
            width, height = header["size"]
            return Decoded(pixels, (width, height), header["found"])
        if "sentence" in header:
            raise DataError(header["sentence"])
        if "machine" in header:
            raise FileError(f"{shown(path)}: cannot be read now; {header['machine'].lower()}.")
        if header.get("still"):
            raise StillPictureError(shown(path), header["unfit"], header["remedy"])
        raise BadPictureError(shown(path), *self._refused(header))

    def _ask(self, path: Path, asked: Asked) -> tuple[dict[str, Any], Pixels] | None:
        """The answer of the process; None if it has ended."""
        process = self._process = self._process or _started(self._memory, self._seconds)
        assert process.stdin is not None
        assert process.stdout is not None
        request = json.dumps({"path": str(path), **as_request(asked)})  # escapes what is no UTF-8
        timer = threading.Timer(WALL_SECONDS, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                return None
            header = json.loads(line)
            shape = tuple(header.get("shape", (0, 1, 1, 3)))
            if math.prod(shape) > most_bytes(asked):
                return None
            data = process.stdout.read(math.prod(shape))
            if len(data) < math.prod(shape):
                return None
            return header, np.frombuffer(data, np.uint8).reshape(shape)
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process, which holds nothing worth keeping."""
        process, self._process, self._late = self._process, None, False
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _refused(self, header: dict[str, Any]) -> tuple[str, str]:
        """Why a file is refused, and what to do."""
        if "memory" in header:
            most = f"{self._memory / (1 << 30):g} GiB"
            return f"it takes more than {most} of memory to decode", SHRINK
        if "unfit" in header:
            return str(header["unfit"]), str(header["remedy"])
        said = " ".join(str(header["refused"]).split())[:120]
        return f"it cannot be decoded ({shown(said)})", REPAIR

    def _give_up(self) -> None:
        self._late = True
        if self._process is not None:
            self._process.kill()

    def _without_answer(self, path: Path) -> DataError:
        """Why there was no answer."""
        assert self._process is not None
        code, name = self._process.wait(), shown(path)
        if self._late:
            reason = f"it is not decoded after {WALL_SECONDS:g} seconds"
            return BadPictureError(name, reason, REPAIR)
        if code == -signal.SIGXCPU:
            reason = f"it takes more than {self._seconds} seconds of processor time to decode"
            return BadPictureError(name, reason, SHRINK)
        if code == -signal.SIGKILL:
            reason = "its decoder was killed (signal 9), as happens when memory runs out"
            return BadPictureError(name, reason, SHRINK)
        if code < 0:
            return BadPictureError(name, f"its decoder crashed (signal {-code})", REPAIR)
        return DataError(f"{name}: the process that decodes clips ended with exit code {code}.")


def _started(memory: int, seconds: int) -> subprocess.Popen[bytes]:
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, places)), **dict.fromkeys(ONE_THREAD, "1")}
    memory = memory if sys.platform == "linux" else 0  # other systems keep no such limit
    try:
        return subprocess.Popen(
            [*COMMAND, str(memory), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **own},
        )
    except OSError as error:
        raise DataError(
            f"clips: the process that decodes them does not start; {system_reason(error)}"
        ) from None
