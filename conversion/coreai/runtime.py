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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import ComputeUnits
from mdm_apple.errors import MissingPackageError

from ..errors import ConversionError
from ..execute import ExecutionError, Watch
from .messages import Arrays, Header, read_message, write_message
from .wheels import require_coreai

CHILD = (sys.executable, "-m", "mdm_apple.conversion.coreai.child")
ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 1 << 30  # of outputs per child
MOST_OUTPUTS = 12_000  # arrays per child; macOS 27 ends a process after 16,384


class AppleRuntime:
    """One child process at a time, with a temporary folder of its own.

    Args:
        units: compute units for all packages, on macOS 27; None: those the system chooses.

    Raises MissingPackageError if Core AI's packages are missing, ConversionError for units on Linux.
    """

    def __init__(self, units: ComputeUnits | None = None) -> None:
        require_coreai()
        if units is not None and sys.platform != "darwin":
            raise ConversionError(
                "compute-units: Core AI chooses units on macOS 27 only; leave them out."
            )
        self.units = units
        self.children = 0  # started so far
        self._scratch = Path(tempfile.mkdtemp(prefix="mdm-coreai-"))
        self._child: subprocess.Popen[bytes] | None = None
        self._handles: dict[tuple[Path, str], int] = {}  # in the child
        self._bytes = self._outputs = 0
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._scratch, True)

    def __call__(self, path: Path, function: str | None, proposed: ComputeUnits) -> AppleFunction:
        """See `run.packages.Load`; `proposed` is not used, since one process runs all packages."""
        self.handle(path, function or "main")  # a refusal belongs to loading
        return AppleFunction(self, path, function or "main")

    def run(self, path: Path, function: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One call. Raises ExecutionError if the runtime refuses or its process ends."""
        if self._bytes > MOST_BYTES or self._outputs > MOST_OUTPUTS:
            self.close_child()
        handle = self.handle(path, function)
        out = self._ask(path, {"run": handle}, inputs)[1]
        self._bytes += sum(array.nbytes for array in out.values())
        self._outputs += len(out)
        return out

    def handle(self, path: Path, function: str) -> int:
        """The number under which the child knows a function; loads it if need be."""
        place = path.resolve(), function
        if place not in self._handles:
            asked = {"path": str(place[0]), "function": function, "units": self.units}
            self._handles[place] = int(self._ask(path, asked, {})[0]["loaded"])
        return self._handles[place]

    def close(self) -> None:
        """End the child and remove its folder."""
        self.close_child()
        self._finalizer()

    def close_child(self) -> None:
        """End the child; the next call starts another."""
        child, self._child = self._child, None
        self._handles, self._bytes, self._outputs = {}, 0, 0
        if child is not None:
            with contextlib.suppress(BrokenPipeError):
                _pipe(child.stdin).close()
            child.wait()
            _pipe(child.stdout).close()
        for left in self._scratch.iterdir():  # the unpacked models of a child that was killed
            shutil.rmtree(left, ignore_errors=True)

    def _ask(
        self, path: Path, header: Header, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[Header, Arrays]:
        child = self._child = self._child or self._started()
        try:
            write_message(_pipe(child.stdin), header, arrays)
            answer = read_message(_pipe(child.stdout))
        except BrokenPipeError:
            answer = None
        except BaseException:  # an interrupted request leaves half an answer in the pipe
            child.kill()
            self.close_child()
            raise
        if answer is None:
            reason = _reason(child)
            self.close_child()
            raise ExecutionError(f"{path.name}: {reason}")
        if "error" in answer[0]:
            raise ExecutionError(f"{path.name}: Apple's runtime refused it ({answer[0]['error']}).")
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        self.children += 1
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "TMPDIR": str(self._scratch)}
        return subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **own},
        )


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


def _pipe(stream: Any) -> Any:
    assert stream is not None, "the child was started with pipes"
    return stream


__all__ = ["AppleRuntime", "MissingPackageError"]
