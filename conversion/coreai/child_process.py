"""A process that reads and runs .aimodel files in place of this one, which a bad file would end.

It has a temporary folder of its own, which it removes when this process ends, whatever ends it. An
answer has a time limit, and on Linux the process has a memory limit; both are far above what a
model needs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mdm_apple.errors import system_reason

from ..errors import ConversionError
from ..execute import ExecutionError
from .messages import Arrays, Header, read_message, write_message
from .wheels import cannot_be_loaded

COMMAND = (sys.executable, "-m", "mdm_apple.conversion.coreai.child")
ROOT = Path(__file__).parents[3]
READ_SECONDS = 600.0  # to look at what is in a file
RUN_SECONDS = 3600.0  # to load a function, which a Mac compiles first, or to run it once
LEAST_MEMORY = 4 << 30  # bytes of address space; the libraries alone take 1.1 GB


class ChildEndedError(Exception):
    """The process gave no answer; the message says why."""


class Child:
    """A running process that answers one request after another. Raises ExecutionError."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mdm-coreai-"))
        self._memory = memory_limit()
        self._silent_for: float | None = None
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
            "TMPDIR": str(self.folder),
        }
        try:
            self._process = subprocess.Popen(
                [*COMMAND, str(self.folder), str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **own},
            )
        except OSError as error:
            self.folder.rmdir()
            raise ExecutionError(
                f"coreai: the process for Apple's runtime does not start; {system_reason(error)}"
            ) from None

    @property
    def number(self) -> int:
        """The process number."""
        return self._process.pid

    def ask(
        self, path: Path, header: Header, arrays: Mapping[str, NDArray[Any]], seconds: float
    ) -> tuple[Header, Arrays]:
        """The answer to a request about a file; the process is ended if it takes longer.

        Raises ExecutionError if the file is refused, ChildEndedError without an answer,
        MissingPackageError if Apple's packages cannot be loaded.
        """
        to, source = self._process.stdin, self._process.stdout
        assert to is not None
        assert source is not None
        timer = threading.Timer(seconds, self._give_up, [seconds])
        timer.daemon = True
        timer.start()
        try:
            write_message(to, header, arrays)
            answer = read_message(source)
        except BrokenPipeError:
            answer = None
        finally:
            timer.cancel()
            timer.join()  # it may be giving up just now
        if answer is None or self._silent_for is not None:
            raise ChildEndedError(self._reason())
        if "missing" in answer[0]:
            raise cannot_be_loaded(str(answer[0]["missing"]))
        if "refusal" in answer[0]:
            raise ConversionError(str(answer[0]["refusal"]))
        if "error" in answer[0]:
            raise ExecutionError(f"{path.name}: Apple's runtime refused it ({answer[0]['error']}).")
        return answer

    def end(self) -> None:
        """End the process and remove its folder."""
        self._process.kill()  # it holds nothing that is worth keeping
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _give_up(self, seconds: float) -> None:
        self._silent_for = seconds
        self._process.kill()

    def _reason(self) -> str:
        """Why there was no answer."""
        code = self._process.wait()
        if self._silent_for is not None:
            return f"Apple's runtime gave no answer within {self._silent_for:g} seconds."
        if code == -signal.SIGKILL:
            return "Apple's runtime was killed (signal 9), as happens when memory runs out."
        if code < 0:
            limit = f" or needs more than {self._memory / 1e9:.0f} GB" if self._memory else ""
            return (
                f"Apple's runtime stopped (signal {-code}); the file is damaged{limit}, so convert "
                "it again."
            )
        return f"the process of Apple's runtime ended with exit code {code}."


def memory_limit() -> int:
    """Bytes of address space for the process: three quarters of the machine's memory.

    At least LEAST_MEMORY. 0, no limit, where the system keeps none.
    """
    if sys.platform != "linux":
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(LEAST_MEMORY, memory // 4 * 3)
