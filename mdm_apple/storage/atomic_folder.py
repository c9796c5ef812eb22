"""The files of a model folder, replaced all together or not at all.

A save writes every file into `.saving`, then renames that folder to `.commit`. This one rename
makes the new save valid. Then the files move to their places and `.commit` is removed. If the
process is killed at any moment, a reader still finds one complete save: some files in `.commit`,
the rest in place. The next save, or `finish_save`, completes the moves.

`hashes.json` lists the size and SHA-256 of the files. It is a separate file because no file can
contain its own hash, and because it is also the list of what belongs to a save.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TypeVar, cast

from mdm_apple.errors import MdmError, system_reason
from mdm_apple.storage.file_lock import try_lock
from mdm_apple.storage.files import file_sha256, remove_empty, sync_folder
from mdm_apple.storage.tensorfile import Written, write_bytes

HASHES = "hashes.json"
FILES = (
    "config.json",
    "model.safetensors",
    "ema.safetensors",
    "text_encoder.safetensors",
    "text_encoder_ema.safetensors",
    "tokenizer.model",
    "training.safetensors",
    "training.json",
)
SAVING, _COMMIT = ".saving", ".commit"
PATIENCE = 10.0  # seconds; finishing a save takes milliseconds

T = TypeVar("T")


class CheckpointError(MdmError):
    """A model folder that cannot be written or has the wrong contents; one sentence."""


def replace_files(
    folder: Path, writers: Mapping[str, Callable[[Path], Written]], *, keep_others: bool = False
) -> None:
    """Make the files of `writers` the contents of the folder, and remove the other FILES.

    Each writer creates and syncs the file at the given path. Other files, such as
    metrics.jsonl, are left alone. Raises CheckpointError, with the previous save untouched.

    Args:
        keep_others: keep the other FILES in the save, unchanged.
    """
    assert set(writers) <= set(FILES), "a save consists of known file names"
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _finish(folder)
            kept = recorded_hashes(folder) if keep_others else {}
            _stage(folder / SAVING, writers, kept)
            os.rename(folder / SAVING, folder / _COMMIT)
            sync_folder(folder)
            _finish(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be saved; {system_reason(error)}") from None
    finally:
        remove_empty(missing)


def finish_save(folder: Path) -> None:
    """Complete a save that was interrupted after it became valid; call before training resumes.

    Processes that resume together may all call it; they wait for each other.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder.")
    try:
        with _locked(folder, patience=PATIENCE):
            _finish(folder)
            _remove(folder / SAVING)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot finish the last save; {system_reason(error)}"
        ) from None


def read_file(folder: Path, name: str, read: Callable[[Path], T]) -> T:
    """Apply `read` to the current version of one file, also while a save is moving it."""
    path = locate(folder, name)
    while True:
        try:
            return read(path)
        except MdmError:
            moved = locate(folder, name)
            if moved == path:
                raise
            path = moved


def locate(folder: Path, name: str) -> Path:
    """The path of the current version of a file; raises CheckpointError if there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder.")
    commit = folder / _COMMIT
    pending = _read_hashes(commit / HASHES)
    if pending is None or name in pending:
        places = [commit / name, folder / name] if pending else [folder / name]
        for place in places:  # in this order, because files move from the first to the second
            if place.is_file():
                return place
    raise CheckpointError(f"{folder}: holds no {name}.")


def has_file(folder: Path, name: str) -> bool:
    """Whether the current save has this file."""
    try:
        locate(folder, name)
    except CheckpointError:
        return False
    return True


def recorded_hashes(folder: Path) -> dict[str, Written]:
    """Size and SHA-256 of every file of the current save, recorded when it was written."""
    hashes = _read_hashes(folder / _COMMIT / HASHES) or _read_hashes(folder / HASHES)
    if hashes is None:
        raise CheckpointError(f"{folder}: holds no {HASHES}, so its files cannot be checked.")
    return hashes


def verify_files(folder: Path) -> None:
    """Raise CheckpointError unless every file has exactly the saved bytes; reads them all."""
    changed = [
        name
        for name, written in recorded_hashes(folder).items()
        if not has_file(folder, name) or file_sha256(locate(folder, name)) != written.sha256
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed since the save; restore the folder from a "
            "copy."
        )


def _stage(
    saving: Path, writers: Mapping[str, Callable[[Path], Written]], kept: Mapping[str, Written]
) -> None:
    """Write the files and the hashes of the whole save; files in `kept` are already in place."""
    _remove(saving)
    saving.mkdir()
    try:
        hashes = {**kept, **{name: write(saving / name) for name, write in writers.items()}}
        listing = {name: {"size": w.size, "sha256": w.sha256} for name, w in hashes.items()}
        write_bytes(saving / HASHES, (json.dumps(listing, indent=2) + "\n").encode())
        sync_folder(saving)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(saving)
        raise


def _finish(folder: Path) -> None:
    """Move the files of a valid save into place; may be interrupted and repeated."""
    commit = folder / _COMMIT
    if commit.is_symlink():
        raise CheckpointError(f"{folder}: {_COMMIT} is a link, which no save creates; remove it.")
    hashes = _read_hashes(commit / HASHES)
    if hashes is not None:
        for name in FILES:
            if name in hashes and (commit / name).exists():
                os.replace(commit / name, folder / name)
            elif name not in hashes:
                (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        os.replace(commit / HASHES, folder / HASHES)
        sync_folder(folder)
    _remove(commit)


def _read_hashes(path: Path) -> dict[str, Written] | None:
    """The list of hashes, or None if there is none; raises CheckpointError if it is damaged."""
    try:
        with path.open("rb") as file:
            data: object = json.loads(file.read(1 << 16))
        entries = cast("dict[str, dict[str, object]]", data)
        if not set(entries) <= set(FILES):
            raise ValueError
        return {
            name: Written(int(str(entry["size"])), str(entry["sha256"]))
            for name, entry in entries.items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: damaged; restore the folder from a copy.") from None


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: Path, patience: float = 0.0) -> Generator[None]:
    """Lock the folder for one writer; the system releases the lock however the process ends.

    Args:
        patience: seconds to wait for another writer.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    f"{folder}: another process is saving there; choose a different folder or "
                    "stop it."
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
