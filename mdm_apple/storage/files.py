"""Files written completely or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mdm_apple.errors import MdmError, system_reason
from mdm_apple.storage.file_lock import try_lock

PARTIAL = ".partial"  # how the name of what is half-written ends
_PARTIAL_NAME = re.compile(r"\.(.+)\.[0-9]+\.partial", re.DOTALL)
_SYSTEM_FILES = frozenset(
    (
        *(".ds_store", ".localized", ".spotlight-v100", ".trashes", ".fseventsd", "icon\r"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"),
        *(".appledouble", ".apdisk", "$recycle.bin", "system volume information"),
    )
)


class FileError(MdmError):
    """A file that cannot be read or written."""


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """A binary file that appears at `path`, complete and on disk, when the block succeeds.

    Until then any previous file stays; if the block raises, it is kept. What a killed process left
    half-written for this path is removed.
    Raises FileError if the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        remove_abandoned(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)):  # an error from elsewhere in the block
            raise
        raise FileError(f"{path}: cannot be written; {system_reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(temporary: Path) -> Generator[BinaryIO]:
    """A new file, locked for as long as it is open: others see that it is not abandoned."""
    while True:
        with temporary.open("w+b") as file:
            try_lock(file.fileno())
            if temporary.exists():  # else another process took it for abandoned just before
                yield file
                return


def partial_name(name: str) -> str | None:
    """The name of the output that a half-written file or folder of this name was to become."""
    found = _PARTIAL_NAME.fullmatch(name)
    return None if found is None else found[1]


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left half-written for `path`, as file or as folder."""
    with suppress(OSError):
        for place in partials(path):
            with locked_place(place) as alone:
                if alone and place.is_dir():
                    shutil.rmtree(place)
                elif alone:
                    place.unlink()


def partials(path: Path) -> list[Path]:
    """What is half-written for `path`, by living processes or by dead ones."""
    with os.scandir(path.parent) as entries:
        return [Path(entry) for entry in entries if partial_name(entry.name) == path.name]


@contextmanager
def locked_place(place: Path) -> Generator[bool]:
    """Lock a file or folder while the block runs; False if another process has. Raises OSError."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def is_system_file(name: str) -> bool:
    """Whether Finder, Windows, an archive tool or a disk station left a file or folder there.

    Such files are no part of what a person put into a folder. Swift has the same list.
    """
    return name.startswith("._") or name.casefold() in _SYSTEM_FILES


def is_lfs_pointer(start: bytes) -> bool:
    """Whether these first bytes of a file are those of a Git LFS pointer in its place."""
    return start.startswith(b"version https://git-lfs")


def occupied(path: Path) -> bool:
    """Whether something is there that writing would replace; an empty folder is not.

    Nor is one with system files alone.
    """
    if path.is_dir():
        return not all(is_system_file(item.name) for item in path.iterdir())
    return path.exists()


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the empty ones of these folders, deepest first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in pieces; raises FileError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from None


def sync_folder(folder: Path) -> None:
    """Make renames in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
