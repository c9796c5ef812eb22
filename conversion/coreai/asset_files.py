"""Checks the files of an .aimodel from elsewhere, before Apple's code reads it in the child."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mdm_apple.errors import system_reason
from mdm_apple.storage.files import is_system_file

from ..bundle.manifest import PROGRAM, PROGRAM_HASH
from ..execute import ExecutionError
from .seal import METADATA, has_own_hash

LIMITS = {PROGRAM: 16 << 30, PROGRAM_HASH: 32, METADATA: 1 << 20}  # bytes


def check_files(path: Path) -> dict[str, int]:
    """Bytes of each file. Raises ExecutionError for links, other files, and a wrong hash."""
    try:
        sizes = {entry.name: _size(path, entry) for entry in _entries(path)}
        for name in LIMITS:
            if name not in sizes:
                raise ExecutionError(f"{path}: {name} is missing; copy the whole package.")
        if sizes[PROGRAM_HASH] != LIMITS[PROGRAM_HASH] or not has_own_hash(path):
            raise ExecutionError(
                f"{path}: {PROGRAM_HASH} is not the SHA-256 of {PROGRAM}; it is damaged or was "
                "altered, so copy it again."
            )
    except OSError as error:
        raise ExecutionError(f"{path}: cannot be read; {system_reason(error)}") from None
    return sizes


def _entries(path: Path) -> list[os.DirEntry[str]]:
    if not path.is_dir():
        raise ExecutionError(f"{path}: expected the folder of an .aimodel, got a file.")
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not is_system_file(entry.name)]
    return sorted(found, key=lambda entry: entry.name)


def _size(path: Path, entry: os.DirEntry[str]) -> int:
    if entry.name not in LIMITS:
        raise ExecutionError(
            f"{path}: holds {entry.name[:80]!r}; expected {', '.join(LIMITS)} and nothing else."
        )
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise ExecutionError(f"{path}: {entry.name} is a link or no file; copy the whole package.")
    if found.st_size > LIMITS[entry.name]:
        raise ExecutionError(
            f"{path}: {entry.name} has {found.st_size} bytes; expected at most "
            f"{LIMITS[entry.name]}."
        )
    return found.st_size
