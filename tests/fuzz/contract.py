"""What holds for every reader of bytes from outside, whatever the bytes are.

It returns, or it raises MdmError with one sentence, soon and in little memory. Meanwhile it starts
nothing, connects to nothing, and opens no file of anybody else.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mdm_apple.errors import MdmError

# Given an empty folder and the bytes, reads them as the product would.
Read = Callable[[Path, bytes], object]

SECONDS = 5.0  # of processor time
GROWTH = 1 << 30  # bytes of memory over the most that the process ever had
SENTENCE = 1000  # characters, besides the folder
FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class"),
)
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod")
ROOT = Path(__file__).parents[2]
# Where Python and its packages lie: what a reader imports late is opened there.
CODE = tuple(
    {os.path.realpath(p) for p in (*sys.path, sys.prefix, sys.base_prefix, ROOT) if p}
    | {"/proc", "/sys", "/dev", "/etc/localtime", "/usr/share/zoneinfo", "/usr/lib"}
)


class BrokenContractError(Exception):
    """A reader that does not keep to the contract."""


def hold(read: Read, folder: Path, data: bytes) -> MdmError | None:
    """Read the bytes in `folder`, which is empty; the refusal, if any.

    Raises BrokenContractError, or whatever else than MdmError the reader raises.
    """
    before, started = peak_memory(), time.process_time()
    refusal = None
    with _watched(folder) as seen:
        try:
            read(folder, data)
        except MdmError as error:
            refusal = error
    if seen:
        raise BrokenContractError(f"did what no reader may: {seen[0]}")
    if (seconds := time.process_time() - started) > SECONDS:
        raise BrokenContractError(f"took {seconds:.1f} s of processor time")
    if (grown := peak_memory() - before) > GROWTH:
        raise BrokenContractError(f"took {grown >> 20} MiB of memory")
    if refusal is not None:
        sentence = str(refusal).replace(str(folder), "")
        if "\n" in sentence or not sentence.endswith((".", "?")) or len(sentence) > SENTENCE:
            raise BrokenContractError(f"refused with something else than a sentence: {sentence!r}")
    return refusal


def warmed(read: Read, folder: Path, data: bytes) -> Read:
    """The reader, once it has imported what it imports late: that costs its time only once."""
    with suppress(MdmError):
        read(folder, data)
    return read


def peak_memory() -> int:
    """The most bytes that this process ever had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


class _Watch:
    """Hears what the process does; Python offers no way to take a hook away again."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []

    def heard(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if (
            event in FORBIDDEN
            or (event == "open" and not self.allowed(given[0], writing=_writes(*given[1:3])))
            or (event in CHANGING and not self.allowed(given[0], writing=True))
        ):
            self.seen.append(f"{event} {given[:1]!r}")

    def allowed(self, path: object, *, writing: bool) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return True  # a descriptor, opened before
        place, inside = os.path.realpath(os.fsdecode(path)), f"{self.folder}{os.sep}"
        if place == self.folder or place.startswith(inside):
            return True
        if writing and "__pycache__" not in place:
            return place == os.devnull
        return place.startswith(CODE)


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


_WATCH = _Watch()
sys.addaudithook(_WATCH.heard)


@contextmanager
def _watched(folder: Path) -> Generator[list[str]]:
    _WATCH.seen, _WATCH.folder = [], os.path.realpath(folder)
    try:
        yield _WATCH.seen
    finally:
        _WATCH.folder = None
