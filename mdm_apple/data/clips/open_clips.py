"""A folder of the user's captioned clips; each file is decoded once, before training.

Input: a path and what a model takes. Output: a `Dataset` of canvases in the order of the file
names, or one sentence of refusal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.cache import RULES, ClipCache, Kept
from mdm_apple.data.clips.decode import Wanted
from mdm_apple.data.clips.decoder import Decoders, StillPictureError, decoders
from mdm_apple.data.dataset import DataError, Dataset, File, hash_fields
from mdm_apple.data.decode_all import decode_all
from mdm_apple.data.folder import (
    CaptionedFiles,
    Folder,
    Picture,
    captioned_files,
    nothing_to_use,
    other_kind,
    refusal_of,
    warnings_of,
)
from mdm_apple.data.kinds import CLIPS, MOVIES
from mdm_apple.data.listing import Fault, counted, named
from mdm_apple.data.read_picture import shown
from mdm_apple.errors import require_installed
from mdm_apple.storage.files import file_sha256

CLIPS_PER_FILE = 8
MAX_CLIPS_PER_FILE = 100
PROCESSES = 4  # at most that decode; each may take a GiB

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class ClipFile:
    """A captioned file of clips: its hash, and where its clips lie decoded."""

    picture: Picture
    sha256: str
    kept: Kept


@dataclass(frozen=True)
class ClipFolder:
    """What a folder of clips holds. files: those with clips. short: those of too few frames."""

    folder: Folder
    wanted: Wanted
    files: list[ClipFile]
    short: list[ClipFile]


def no_progress(done: int, total: int) -> None:
    """What is called where nobody watches."""


def open_clips(
    root: Path, wanted: Wanted, *, skip_bad: bool = False, progress: Progress = no_progress
) -> Dataset:
    """Open a folder of clips (.gif .webp .png .mp4 .mov .m4v .webm .mkv) and their captions.

    `caption_layout` says where captions may come from. Files that are not in the user's cache of
    decoded clips are decoded now. The fingerprint covers names, contents, captions and `wanted`.

    Args:
        skip_bad: leave out the files that cannot be decoded, and name them.
        progress: called with the files done and their total.

    Raises:
        DataError: missing, empty or ambiguous folder, a folder of pictures, unreadable caption or
            clip, a name or link that leads out of the folder.
        MissingPackageError: .mp4, .mov, .m4v, .webm or .mkv files without the `video` extra.
    """
    found = read_clips(root, wanted, progress)
    if found.folder.faults and not skip_bad:
        raise refusal_of(found.folder)
    return as_dataset(found)


def read_clips(root: Path, wanted: Wanted, progress: Progress = no_progress) -> ClipFolder:
    """List a folder of clips, and decode each captioned file that was not decoded before.

    Raises as `open_clips` does, but not for a bad file.
    """
    listed = captioned_files(root, CLIPS)
    if any(file.name.lower().endswith(MOVIES) for file, _, _ in listed.files):
        require_installed("av")
    cache, faults = ClipCache(wanted), list(listed.faults)
    files: list[ClipFile] = []
    stills: list[str] = []
    # a table may name a file twice, with two captions
    paths = list(dict.fromkeys(path for _, path, _ in listed.files))
    count = min(PROCESSES, os.cpu_count() or 1)
    results: dict[Path, tuple[str, Kept] | DataError] = {}
    with decoders(count) as processes:

        def clips_of(index: int) -> tuple[str, Kept]:
            return _clips_of(paths[index], cache, processes, wanted)

        for done, (index, result) in enumerate(decode_all(range(len(paths)), clips_of), 1):
            results[paths[index]] = result
            progress(done, len(paths))
    for file, path, caption in listed.files:
        result = results[path]
        if isinstance(result, DataError):
            faults.append(Fault(file.name, result))
            stills += [file.name] * isinstance(result, StillPictureError)
        else:
            sha256, kept = result
            files.append(ClipFile(Picture(file, path, caption, kept.size), sha256, kept))
    if stills and len(stills) == len(listed.files):
        raise other_kind(listed.root, CLIPS, stills[0])
    return _folder(listed, wanted, files, faults)


def captions_of_clips(root: Path) -> list[str]:
    """The captions of a folder of clips; no file is opened, so that some may be too short.

    Raises DataError as `open_clips` does, but for no bad file.
    """
    listed = captioned_files(root, CLIPS)
    if listed.faults:
        raise listed.faults[0].error
    if not listed.files:
        raise nothing_to_use(Folder(listed.root, CLIPS, listed.listing, [], []))
    return [caption for _, _, caption in listed.files]


def _folder(
    listed: CaptionedFiles, wanted: Wanted, files: Sequence[ClipFile], faults: list[Fault]
) -> ClipFolder:
    used = [file for file in files if file.kept.clips]
    folder = Folder(listed.root, CLIPS, listed.listing, [file.picture for file in used], faults)
    return ClipFolder(folder, wanted, used, [file for file in files if not file.kept.clips])


def _clips_of(
    path: Path, cache: ClipCache, processes: Decoders, wanted: Wanted
) -> tuple[str, Kept]:
    """The hash of a file and its clips, decoded unless they are kept."""
    sha256 = file_sha256(path)
    kept = cache.find(sha256)
    if kept is None:
        kept = cache.keep(sha256, processes.decode(path, wanted))
    return sha256, kept


def as_dataset(found: ClipFolder) -> Dataset:
    """The clips that can be used, those of a file in turn. Raises DataError if there are none."""
    folder, wanted = found.folder, found.wanted
    if not found.files:
        if found.short and not folder.faults:
            raise DataError(f"{shown(folder.root)}: {_too_short(found)}; give longer clips.")
        raise nothing_to_use(folder)
    rows = [(file, number) for file in found.files for number in range(file.kept.clips)]

    def read(index: int) -> tuple[Pixels, float]:
        file, number = rows[index]
        # the pixels that a canvas of whole frames would have had
        return file.kept.canvas(number), float(wanted.grid * min(file.picture.size))

    content: list[object] = [
        part
        for file in found.files
        for part in (file.picture.file.name, file.sha256, file.kept.clips, file.picture.caption)
    ]
    settings = (wanted.side, wanted.frames, wanted.fps, wanted.most)
    files: list[File] = [file.picture.file for file, _ in rows]
    return Dataset(
        wanted.side,
        [file.picture.caption for file, _ in rows],
        read,
        hash_fields(["clips", RULES, *settings, *content]),
        _warnings(found),
        files,
        {fault.name: str(fault.error) for fault in folder.faults},
    )


def _warnings(found: ClipFolder) -> list[str]:
    warnings = warnings_of(found.folder, found.wanted.frame_side)
    if found.short:
        warnings.append(f"clips: {_too_short(found)}, and not used.")
    return warnings


def _too_short(found: ClipFolder) -> str:
    """Which files have too few frames, as part of a sentence."""
    short, wanted = found.short, found.wanted
    names = named([file.picture.file.name for file in short])
    some = "is" if len(short) == 1 else "are"
    return (
        f"{counted(len(short), 'file')} {some} shorter than {wanted.frames} frames at "
        f"{wanted.fps:g} a second{names}"
    )
