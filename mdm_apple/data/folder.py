"""A folder of the user's captioned pictures; its files come from outside and are not trusted.

Input: a path. Output: a `Dataset` in the order of the file names, or one sentence of refusal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError, Dataset, hash_fields
from mdm_apple.data.read_picture import SUFFIXES, read_square, shorter_side, shown
from mdm_apple.text.captions import clean_caption

METADATA = "metadata.jsonl"
MAX_LINE_BYTES = 8 * MAX_CAPTION_BYTES  # JSON may write one character as six
MAX_NAMED = 10
_IGNORED = ("__macosx", "thumbs.db", "desktop.ini")
_LAYOUTS = (
    "Expected a metadata.jsonl, or pictures with a .txt caption each, or one sub-folder of "
    "pictures per class"
)


@dataclass(frozen=True)
class Listing:
    """The result of a layout: (path below the folder, caption) pairs and the files it skipped."""

    pairs: list[tuple[str, str]]
    skipped: list[str]


def open_folder(root: Path, side: int) -> Dataset:
    """Open a folder of pictures (.png .jpg .jpeg .webp .bmp) in one of three layouts.

    - `metadata.jsonl`, if there is one: a line of JSON per picture with "file_name" (below the
      folder, sub-folders allowed) and "text"; other keys are ignored. Line order is kept.
    - Pictures in the folder itself, each with a caption in a .txt file of the same stem (UTF-8,
      one caption, may be empty). Pictures without one are skipped with a warning.
    - One sub-folder per class; the caption is its name with `_` and `-` read as spaces.

    A folder that fits two layouts is refused. Names that start with a dot are ignored. Headers of
    all pictures are read now, pixels later. The fingerprint covers names, file sizes, captions and
    side, not pixels.

    Raises:
        DataError: missing, empty or ambiguous folder, unreadable caption or picture, a picture of
            too many pixels, a name or link that leads out of the folder.
    """
    try:
        root = root.resolve()
        if not root.is_dir():
            raise DataError(
                f"{shown(root)}: no such folder. Give 'twemoji' or a folder of captioned pictures."
            )
        listing = _list_folder(root)
        paths = [_inside(root, name, name) for name, _ in listing.pairs]
        sizes = [path.stat().st_size for path in paths]
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{shown(root)}: cannot be read ({shown(str(error))}).") from None
    if not paths:
        raise DataError(
            f"{shown(root)}: no captioned picture found. {_LAYOUTS}{_named(listing.skipped)}."
        )
    captions = [caption for _, caption in listing.pairs]
    scales = [shorter_side(path) for path in paths]

    def read(index: int) -> tuple[Pixels, float]:
        return read_square(paths[index], side), float(scales[index])

    content = [
        field
        for (name, caption), size in zip(listing.pairs, sizes, strict=True)
        for field in (name, size, caption)
    ]
    fingerprint = hash_fields(["folder", side, *content])
    warnings = _warnings(listing, scales, side)
    return Dataset(side, captions, read, fingerprint, warnings)


def _list_folder(root: Path) -> Listing:
    files, folders = _entries(root)
    pictures = [name for name in files if _is_picture(name)]
    captioned = [name for name in pictures if _caption_name(name) in files]
    if METADATA in files:
        if captioned:
            raise _ambiguous(root, METADATA, f"{_caption_name(captioned[0])} beside its picture")
        return _list_metadata(root)
    classes = [name for name in folders if any(map(_is_picture, _entries(root / name)[0]))]
    if pictures and classes:
        raise _ambiguous(root, f"the picture {pictures[0]}", f"the folder of pictures {classes[0]}")
    if classes:
        return _list_classes(root, classes, files)
    pairs = [(name, _read_caption(root, _caption_name(name))) for name in captioned]
    used = {*captioned, *map(_caption_name, captioned)}
    return Listing(pairs, [name for name in files if name not in used])


def _list_classes(root: Path, classes: Iterable[str], loose: Iterable[str]) -> Listing:
    pairs: list[tuple[str, str]] = []
    skipped = list(loose)
    for folder in classes:
        _inside(root, folder, folder, want_file=False)
        files, deeper = _entries(root / folder)
        caption = clean_caption(folder.replace("_", " ").replace("-", " "))
        for name in files:
            if _is_picture(name) and _caption_name(name) in files:
                raise _ambiguous(
                    root, f"the class folder {folder}", f"the caption {_caption_name(name)} in it"
                )
            if _is_picture(name):
                pairs.append((f"{folder}/{name}", caption))
            else:
                skipped.append(f"{folder}/{name}")
        skipped += [f"{folder}/{name}/" for name in deeper]
    return Listing(pairs, skipped)


def _list_metadata(root: Path) -> Listing:
    pairs: list[tuple[str, str]] = []
    for number, line in _lines(_inside(root, METADATA, METADATA)):
        where = f"{shown(root / METADATA)} line {number}"
        try:
            data: object = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: expected one JSON object in UTF-8.") from None
        entry = cast("dict[str, object]", data) if isinstance(data, dict) else {}
        name, text = entry.get("file_name"), entry.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f'{where}: expected the keys "file_name" and "text", both text.')
        if len(text.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
            raise DataError(f"{where}: expected a caption of at most 64 KiB.")
        if not _is_picture(name):
            raise DataError(
                f"{where}: {shown(name[:200])} is not a .png .jpg .jpeg .webp or .bmp file."
            )
        try:
            _inside(root, name, where)
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: is not a possible file name; correct file_name.") from None
        pairs.append((str(PurePosixPath(name)), clean_caption(text)))
    return Listing(pairs, [])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, each with bounded length."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{shown(path)} line {number}: is longer than a caption may be.")
            if line.strip():
                yield number, line


def _entries(folder: Path) -> tuple[dict[str, None], list[str]]:
    """Names of files and of sub-folders, both sorted; dot files and system files are left out.

    Files are a dict for its fast `in`. Anything else (a pipe, a dead link) counts as a file here;
    `_inside` refuses it if it is ever needed.
    """
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED:
                (folders if entry.is_dir() else files).append(entry.name)
    return dict.fromkeys(sorted(files)), sorted(folders)


def _inside(root: Path, name: str, where: str, *, want_file: bool = True) -> Path:
    """The real path of `name`, links resolved; it must lie below the real path `root`."""
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise DataError(
            f"{shown(where)}: leads out of the folder; copy the picture into {shown(root)}."
        )
    if want_file and not path.is_file():
        raise DataError(f"{shown(where)}: no such file in {shown(root)}.")
    return path


def _read_caption(root: Path, name: str) -> str:
    path = _inside(root, name, name)
    with path.open("rb") as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise DataError(f"{shown(path)}: expected a caption of at most 64 KiB.")
    try:
        return clean_caption(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)}: expected UTF-8 text; save it as UTF-8.") from None


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _caption_name(picture: str) -> str:
    return str(PurePosixPath(picture).with_suffix(".txt"))


def _ambiguous(root: Path, one: str, other: str) -> DataError:
    return DataError(
        f"{shown(root)}: unclear where captions come from, {shown(one)} or {shown(other)}; "
        "keep one of the two."
    )


def _warnings(listing: Listing, scales: Sequence[int], side: int) -> list[str]:
    warnings: list[str] = []
    small = [i for i, scale in enumerate(scales) if scale < side]
    if small:
        least = min(small, key=lambda i: scales[i])
        warnings.append(
            f"{len(small)} of {len(scales)} pictures are smaller than {side} px and are enlarged; "
            f"the smallest is {shown(listing.pairs[least][0])} with {scales[least]} px."
        )
    if listing.skipped:
        warnings.append(f"{len(listing.skipped)} files are not used{_named(listing.skipped)}.")
    return warnings


def _named(skipped: Sequence[str]) -> str:
    if not skipped:
        return ""
    names = ", ".join(map(shown, skipped[:MAX_NAMED]))
    more = len(skipped) - MAX_NAMED
    return f" (no caption or no picture: {names}{f' and {more} more' if more > 0 else ''})"
