"""Runs .aimodel files with Apple's runtime, in a child process.

On Linux the runtime never frees its outputs, and on macOS 27 a process ends after 16,384 of them;
so the child is replaced after a while. A damaged file ends the child, not this process.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.apple_system import require_units
from mdm_apple.config.types import ComputeUnits
from mdm_apple.errors import require_coreai

from ..execute import ExecutionError, Watch
from ..footprint import peak_bytes
from . import child_process
from .census import Census, read_census
from .child_process import Child, ChildEndedError
from .messages import Arrays

MOST_BYTES = 1 << 30  # of outputs per child
MOST_OUTPUTS = 12_000  # arrays per child; macOS 27 ends a process after 16,384


class AppleRuntime:
    """Apple's runtime in one child process at a time, with a temporary folder of its own.

    Args:
        units: compute units for all packages, on macOS 27; None: those that the system chooses.

    Raises MissingPackageError without Core AI's packages, MdmError for units where nothing
        chooses them.
    """

    def __init__(self, units: ComputeUnits | None = None) -> None:
        require_coreai()
        if units is not None:
            require_units()
        self.units: ComputeUnits | None = units
        self.children = 0  # started so far
        self._peak: int | None = None  # of those that have ended
        self._alive: list[_Loaded] = []  # at most one
        self._ended = weakref.finalize(self, _end, self._alive)

    def __call__(self, path: Path, function: str | None, proposed: ComputeUnits) -> AppleFunction:
        """See `run.packages.Load`; `proposed` is not used, since one process runs all packages."""
        self._load(path, function or "main")  # a refusal belongs to loading
        return AppleFunction(self, path, function or "main")

    def run(self, path: Path, function: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """One call. Raises ExecutionError if the runtime refuses or its process ends."""
        if self._alive and self._alive[0].is_spent:
            self.close()
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
    def _kept_or_replaced(self, path: Path) -> Generator[_Loaded]:
        """The child; it is ended if it gave no answer, or half of one."""
        try:
            yield self._child()
        except ExecutionError:  # a refusal: the child is well
            raise
        except ChildEndedError as ended:
            self.close()
            raise ExecutionError(f"{path.name}: {ended}") from None
        except BaseException:
            self.close()
            raise

    @property
    def process(self) -> int | None:
        """The child's process number; None while there is no child."""
        return self._alive[0].child.number if self._alive else None

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of the largest child so far; None if there was none or it is not known."""
        known = [self._peak, *(peak_bytes(loaded.child.number) for loaded in self._alive)]
        return max((peak for peak in known if peak is not None), default=None)

    def close(self) -> None:
        """End the child and remove its folder; the next call starts another."""
        self._peak = self.peak_bytes
        _end(self._alive)

    def start_afresh(self) -> None:
        """Replace the child by one that has loaded no function, but Apple's packages."""
        self.close()
        with self._kept_or_replaced(Path("coreai")) as child:
            child.import_packages()

    def _child(self) -> _Loaded:
        if not self._alive:
            self.children += 1
            self._alive.append(_Loaded(Child()))
        return self._alive[0]


class _Loaded:
    """A child with the functions that it has loaded, and what it has put out."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._handles: dict[tuple[Path, str], int] = {}
        self._bytes = self._outputs = 0

    @property
    def is_spent(self) -> bool:
        return self._bytes > MOST_BYTES or self._outputs > MOST_OUTPUTS

    def import_packages(self) -> None:
        self.child.ask(Path("coreai"), {"import": True}, {}, child_process.READ_SECONDS)

    def handle(self, path: Path, function: str, units: ComputeUnits | None) -> int:
        """The number under which the child knows a function; loads it if need be."""
        place = path.resolve(), function
        if place not in self._handles:
            asked = {"path": str(place[0]), "function": function, "units": units}
            answer, _ = self.child.ask(path, asked, {}, child_process.RUN_SECONDS)
            self._handles[place] = int(answer["loaded"])
        return self._handles[place]

    def run(self, handle: int, path: Path, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        _, out = self.child.ask(path, {"run": handle}, inputs, child_process.RUN_SECONDS)
        self._bytes += sum(array.nbytes for array in out.values())
        self._outputs += len(out)
        return out

    def census(self, path: Path, function: str | None) -> Census:
        asked = {"census": str(path.resolve()), "function": function}
        answer, _ = self.child.ask(path, asked, {}, child_process.READ_SECONDS)
        return read_census(answer["census"])


def _end(alive: list[_Loaded]) -> None:
    while alive:
        alive.pop().child.end()


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
