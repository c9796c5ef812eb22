"""Runs .aimodel files with Apple's runtime, in a child process.

On Linux the runtime never frees its outputs, and on macOS 27 a process ends after 16,384 of them;
so the child is replaced after a while. A damaged file ends the child, not this process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import ComputeUnits
from mdm_apple.errors import require_coreai

from ..errors import ConversionError
from ..execute import ExecutionError, Watch
from .census import Census, read_census
from .messages import Arrays, Header, read_message, write_message

CHILD = (sys.executable, "-m", "mdm_apple.conversion.coreai.child")
ROOT = Path(__file__).parents[3]
MOST_BYTES = 1 << 30  # of outputs per child
MOST_OUTPUTS = 12_000  # arrays per child; macOS 27 ends a process after 16,384


class AppleRuntime:
    """Apple's runtime in one child process at a time, with a temporary folder of its own.

    Args:
        units: compute units for all packages, on macOS 27; None: those that the system chooses.

    Raises MissingPackageError without Core AI's packages, ConversionError for units on Linux.
    """

    def __init__(self, units: ComputeUnits | None = None) -> None:
        require_coreai()
        if units is not None and sys.platform != "darwin":
            raise ConversionError(
                "compute-units: Core AI chooses units on macOS 27 only; leave them out."
            )
        self.units = units
        self.children = 0  # started so far
        self.scratch = Path(tempfile.mkdtemp(prefix="mdm-coreai-"))
        self._alive: list[_Child] = []  # at most one
        self._ended = weakref.finalize(self, _end, self._alive, self.scratch)

    def __call__(self, path: Path, function: str | None, proposed: ComputeUnits) -> AppleFunction:
        """See `run.packages.Load`; `proposed` is not used, since one process runs all packages."""
        self._load(path, function or "main")  # a refusal belongs to loading
        return AppleFunction(self, path, function or "main")

    def run(self, path: Path, function: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One call. Raises ExecutionError if the runtime refuses or its process ends."""
        if self._alive and self._alive[0].is_spent:
            self._forget()
        with self._kept_or_replaced(path) as child:
            return child.run(child.handle(path, function, self.units), path, inputs)

    def census(self, path: Path, function: str | None = None) -> Census:
        """What is in a file, in one function or in all. Raises ExecutionError as `run` does."""
        with self._kept_or_replaced(path) as child:
            return child.census(path, function)

    def _load(self, path: Path, function: str) -> None:
        with self._kept_or_replaced(path) as child:
            child.handle(path, function, self.units)

    @contextlib.contextmanager
    def _kept_or_replaced(self, path: Path) -> Generator[_Child]:
        """The child; it is ended if it gave no answer, or half of one."""
        try:
            yield self._child()
        except ExecutionError:  # a refusal: the child is well
            raise
        except _ChildEndedError as ended:
            self._forget()
            raise ExecutionError(f"{path.name}: {ended}") from None
        except BaseException:
            self._forget()
            raise

    @property
    def process(self) -> int | None:
        """The child's process number; None while there is no child."""
        return self._alive[0].process.pid if self._alive else None

    def close(self) -> None:
        """End the child and remove the folder."""
        self._ended()

    def _child(self) -> _Child:
        if not self._alive:
            self.children += 1
            self._alive.append(_Child(self.scratch))
        return self._alive[0]

    def _forget(self) -> None:
        """End the child with what it left in the folder; the next call starts another."""
        _end(self._alive, None)
        for left in self.scratch.iterdir():
            shutil.rmtree(left, ignore_errors=True)


class _ChildEndedError(Exception):
    """The process gave no answer; the message says why."""


class _Child:
    """A running child, the functions it has loaded, and what it has put out."""

    def __init__(self, scratch: Path) -> None:
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "TMPDIR": str(scratch)}
        self.process = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **own},
        )
        self._handles: dict[tuple[Path, str], int] = {}
        self._bytes = self._outputs = 0

    @property
    def is_spent(self) -> bool:
        return self._bytes > MOST_BYTES or self._outputs > MOST_OUTPUTS

    def handle(self, path: Path, function: str, units: ComputeUnits | None) -> int:
        """The number under which the child knows a function; loads it if need be."""
        place = path.resolve(), function
        if place not in self._handles:
            asked = {"path": str(place[0]), "function": function, "units": units}
            self._handles[place] = int(self._ask(path, asked, {})[0]["loaded"])
        return self._handles[place]

    def run(self, handle: int, path: Path, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        out = self._ask(path, {"run": handle}, inputs)[1]
        self._bytes += sum(array.nbytes for array in out.values())
        self._outputs += len(out)
        return out

    def census(self, path: Path, function: str | None) -> Census:
        asked = {"census": str(path.resolve()), "function": function}
        return read_census(self._ask(path, asked, {})[0]["census"])

    def _ask(
        self, path: Path, header: Header, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[Header, Arrays]:
        to, source = self.process.stdin, self.process.stdout
        assert to is not None
        assert source is not None
        try:
            write_message(to, header, arrays)
            answer = read_message(source)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise _ChildEndedError(_reason(self.process))
        if "error" in answer[0]:
            raise ExecutionError(f"{path.name}: Apple's runtime refused it ({answer[0]['error']}).")
        return answer


def _end(alive: list[_Child], scratch: Path | None) -> None:
    """End the child, if there is one, and remove the folder."""
    while alive:
        process = alive.pop().process
        process.kill()  # it holds nothing that is worth keeping
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


class AppleFunction:
    """A loaded function; see `run.packages.Runnable`."""

    def __init__(self, runtime: AppleRuntime, path: Path, function: str) -> None:
        self._runtime, self._path, self._function = runtime, path, function

    def __call__(
        self, inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None
    ) -> dict[str, NDArray[Any]]:
        """Outputs, with numbers as float32; a watch sees only these."""
        found = self._runtime.run(self._path, self._function, inputs)
        out = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in found.items()}
        if watch is not None:
            import torch

            for name, value in out.items():
                if value.dtype.kind == "f":
                    watch.see("output", name, torch.from_numpy(value))
        return out


def _reason(child: subprocess.Popen[bytes]) -> str:
    """Why a child gave no answer."""
    code = child.wait()
    if code == -signal.SIGKILL:
        return "Apple's runtime was killed (signal 9), as happens when memory runs out."
    if code < 0:
        return f"Apple's runtime stopped (signal {-code}); convert it again."
    return f"the process of Apple's runtime ended with exit code {code}."
