"""A folder that appears complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mdm_apple.errors import system_reason
from mdm_apple.storage.files import (
    PARTIAL,
    FileError,
    locked_place,
    occupied,
    remove_abandoned,
    sync_folder,
)


@contextmanager
def whole_folder(out: Path, mark: str, overwrite: bool = False) -> Generator[Path]:
    """A new folder that becomes `out` when the block succeeds, and vanishes otherwise.

    Args:
        mark: a file that every such folder has; no other folder is overwritten.

    Raises FileError if `out` is occupied (unless told to overwrite), or cannot be written.
    """
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.{os.getpid()}{PARTIAL}")
    aside = out.with_name(f".{out.name}.{os.getpid()}0{PARTIAL}")
    try:
        _refuse_occupied(out, mark, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(out)
        temporary.mkdir()
        try:
            with locked_place(temporary):
                yield temporary
                _refuse_occupied(out, mark, overwrite)  # by another process since
                if out.exists():
                    os.rename(out, aside)
                os.rename(temporary, out)
                sync_folder(out.parent)
        finally:
            if aside.exists() and not out.exists():
                os.rename(aside, out)
            for place in (temporary, aside):
                shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise FileError(f"{out}: cannot be written; {system_reason(error)}") from None


def _refuse_occupied(out: Path, mark: str, overwrite: bool) -> None:
    if not occupied(out):
        return
    if not overwrite:
        raise FileError(f"{out} exists; choose another --out or add --overwrite.")
    if not (out / mark).is_file():
        raise FileError(f"{out}: holds no {mark}, so it is not overwritten; choose another --out.")
