"""Which files are meant: folders of shards, patterns, text files of paths, or shards by name."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from mdm_apple.data.dataset import DataError
from mdm_apple.data.read_picture import shown

SUFFIX = ".tar"
MAX_LIST_BYTES = 1 << 30


def list_shards(given: Sequence[str]) -> list[Path]:
    """Absolute paths in order: a folder's and a pattern's by name, a text file's as it lists them.

    Raises DataError for what is not there, an empty one, and a shard that is named twice.
    """
    paths = [path.resolve() for some in given for path in _one(some)]
    if not paths:
        raise DataError("shards: name a folder of .tar files, a pattern, or a text file of paths.")
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            raise DataError(f"{shown(path)}: is named twice; name each shard once.")
        seen.add(path)
    return paths


def _one(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        found = sorted(item for item in path.rglob(f"*{SUFFIX}") if item.is_file())
        if not found:
            raise DataError(f"{shown(path)}: holds no {SUFFIX} file.")
        return found
    if path.is_file():
        return [path] if path.suffix == SUFFIX else _listed(path)
    named = map(Path, glob.glob(given, recursive=True))
    found = sorted(item for item in named if item.is_file())
    if not found:
        raise DataError(f"{shown(given)}: no such file or folder, and no file fits the pattern.")
    return found


def _listed(path: Path) -> list[Path]:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{shown(path)}: expected at most {MAX_LIST_BYTES >> 20} MiB of paths.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(
            f"{shown(path)}: expected a {SUFFIX} file, or UTF-8 text with a path in each line."
        ) from None
    found = [path.parent / line.strip() for line in lines if line.strip()]
    for shard in found:
        if not shard.is_file():
            raise DataError(f"{shown(path)}: lists {shown(shard)}, which is no file.")
    return found
