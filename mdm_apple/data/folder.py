"""A folder of the user's captioned pictures; its files come from outside and are not trusted.

Input: a path. Output: a `Dataset` in the order of the file names, or one sentence of refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdm_apple.config.types import Pixels
from mdm_apple.data.caption_layout import layouts, list_captions
from mdm_apple.data.dataset import DataError, Dataset, File, hash_fields
from mdm_apple.data.folder_tree import Tree, scan
from mdm_apple.data.kinds import CLIPS, PICTURES, Kind
from mdm_apple.data.listing import Fault, Listing, counted, named
from mdm_apple.data.read_picture import picture_size, read_square, shown
from mdm_apple.data.shards.index_files import is_index


@dataclass(frozen=True)
class Picture:
    """A captioned picture of a folder, known by its header, or a decoded file of clips.

    size: width, height as stored; of clips as they are seen.
    """

    file: File
    path: Path
    caption: str
    size: tuple[int, int]


@dataclass(frozen=True)
class CaptionedFiles:
    """The captioned files of a folder; none is opened. faults: those that cannot be used."""

    root: Path
    kind: Kind
    listing: Listing
    files: list[tuple[File, Path, str]]
    faults: list[Fault]


@dataclass(frozen=True)
class Folder:
    """What a folder holds. faults: captioned pictures or clips that cannot be used."""

    root: Path
    kind: Kind
    listing: Listing
    pictures: list[Picture]
    faults: list[Fault]


def open_folder(root: Path, side: int, *, skip_bad: bool = False) -> Dataset:
    """Open a folder of pictures (.png .jpg .jpeg .webp .bmp) and their captions.

    `caption_layout` says where captions may come from. Headers of all pictures are read now, pixels
    later. The fingerprint covers names, file sizes, captions and side, not pixels.

    Args:
        skip_bad: leave out the pictures that are known here to be unusable, and name them.

    Raises:
        DataError: missing, empty or ambiguous folder, unreadable caption or picture, a picture of
            too many pixels, a name or link that leads out of the folder.
    """
    folder = read_folder(root)
    if folder.faults and not skip_bad:
        raise refusal_of(folder)
    return as_dataset(folder, side)


def as_dataset(folder: Folder, side: int) -> Dataset:
    """The pictures that can be used. Raises DataError if there are none."""
    pictures = folder.pictures
    if not pictures:
        raise nothing_to_use(folder)

    def read(index: int) -> tuple[Pixels, float]:
        picture = pictures[index]
        return read_square(picture.path, side), float(min(picture.size))

    return Dataset(
        side,
        [picture.caption for picture in pictures],
        read,
        folder_fingerprint(side, [(p.file, p.caption) for p in pictures]),
        warnings_of(folder, side),
        [picture.file for picture in pictures],
        {fault.name: str(fault.error) for fault in folder.faults},
    )


def read_folder(root: Path) -> Folder:
    """List a folder of pictures, and read the header of each captioned one.

    Raises DataError for a missing folder, or one that can be read in two ways.
    """
    found = captioned_files(root, PICTURES)
    pictures: list[Picture] = []
    faults = list(found.faults)
    for file, path, caption in found.files:
        try:
            pictures.append(Picture(file, path, caption, picture_size(path)))
        except DataError as error:
            faults.append(Fault(file.name, error))
    return Folder(found.root, PICTURES, found.listing, pictures, faults)


def captioned_files(root: Path, kind: Kind) -> CaptionedFiles:
    """List a folder of pictures or of clips.

    Raises DataError for a missing folder, one of the other kind, or one that can be read in two
    ways.
    """
    files: list[tuple[File, Path, str]] = []
    try:
        root = root.resolve()
        if not root.is_dir():
            raise DataError(
                f"{shown(root)}: no such folder. Give {_instead(kind)} or a folder of captioned "
                f"{kind.one}s."
            )
        if is_index(root):
            raise DataError(
                f"{shown(root)}: is an index of shards, from which mdm train alone reads; give the "
                "folder of pictures that the shards were made from."
            )
        tree = scan(root, kind)
        _refuse_other_kind(tree)
        _refuse_shards(tree)
        listing = list_captions(tree)
        faults = list(listing.faults)
        for name, caption in listing.pairs:
            try:
                path = tree.path(name, name)
            except DataError as error:
                faults.append(Fault(name, error))
                continue
            status = path.stat()
            files.append((File(name, status.st_size, status.st_mtime_ns), path, caption))
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{shown(root)}: cannot be read ({shown(str(error))}).") from None
    return CaptionedFiles(root, kind, listing, files, faults)


def _instead(kind: Kind) -> str:
    return "'motion'" if kind is CLIPS else "'twemoji', 'scenes'"


def _refuse_other_kind(tree: Tree) -> None:
    """Raises DataError for a folder of clips where pictures are wanted, and the reverse."""
    if tree.pictures:
        return
    other = PICTURES if tree.kind is CLIPS else CLIPS
    found = next(filter(other.has, tree.files), None)
    if found is not None:
        raise other_kind(tree.root, tree.kind, found)


def _refuse_shards(tree: Tree) -> None:
    """Raises DataError for a folder of tar files alone."""
    shard = next((name for name in tree.files if name.endswith(".tar")), None)
    if shard is not None and not tree.pictures:
        raise DataError(
            f"{shown(tree.root)}: holds shards ({shown(shard)}); make an index of them with mdm "
            "index, and train on that."
        )


def other_kind(root: Path, wanted: Kind, found: str) -> DataError:
    """The refusal of a folder of clips for a model of pictures, or the reverse.

    found: a file that shows it.
    """
    if wanted is CLIPS:
        return DataError(
            f"{shown(root)}: holds pictures ({shown(found)}) and no clips, and the model makes "
            "clips; give a folder of clips, or a model of pictures, such as --preset emoji."
        )
    return DataError(
        f"{shown(root)}: holds clips ({shown(found)}) and no pictures, and the model makes "
        "pictures; give a folder of pictures, or a model of clips, such as --preset motion."
    )


def nothing_to_use(folder: Folder) -> DataError:
    """The refusal of a folder in which no picture can be used."""
    if folder.faults:
        return refusal_of(folder)
    listing = folder.listing
    return DataError(
        " ".join(
            [
                f"{shown(folder.root)}: no captioned {folder.kind.one} found. "
                f"{layouts(folder.kind)}.",
                *(
                    [f"Not used: {_unused(listing.skipped, folder.kind)}."]
                    if listing.skipped
                    else []
                ),
                *listing.remarks,
            ]
        )
    )


def folder_fingerprint(side: int, pictures: Sequence[tuple[File, str]]) -> str:
    """Hex SHA-256 over files and captions in their order."""
    content = [part for file, text in pictures for part in (file.name, file.bytes, text)]
    return hash_fields(["folder", side, *content])


def refusal_of(folder: Folder) -> DataError:
    """The first fault's sentence, and how many more there are."""
    first, more = str(folder.faults[0].error), len(folder.faults) - 1
    if not more:
        return folder.faults[0].error
    return DataError(
        f"{first.removesuffix('.')}; {more} more cannot be used, and `mdm data check` names them "
        "all."
    )


def warnings_of(folder: Folder, side: int) -> list[str]:
    """Sentences on what is used otherwise than a person may expect.

    side: pixels of a picture, or of a frame of a clip.
    """
    listing, pictures = folder.listing, folder.pictures
    warnings = list(listing.remarks)
    captions = {picture.caption for picture in pictures}
    if len(captions) == 1 and len(pictures) > 1:
        warnings.append(
            f"all {len(pictures)} {folder.kind.one}s have the caption {captions.pop()!r}."
        )
    small = [picture for picture in pictures if min(picture.size) < side]
    if small:
        least = min(small, key=lambda picture: min(picture.size))
        verb = "is" if len(small) == 1 else "are"
        warnings.append(
            f"{len(small)} of {counted(len(pictures), folder.kind.one)} {verb} smaller than "
            f"{side} px and {verb} enlarged; the smallest is {shown(least.file.name)} with "
            f"{min(least.size)} px."
        )
    if listing.skipped:
        count = len(listing.skipped)
        warnings.append(
            f"{counted(count, 'file')} {'is' if count == 1 else 'are'} not used: "
            f"{_unused(listing.skipped, folder.kind)}."
        )
    return warnings


def _unused(skipped: Sequence[str], kind: Kind) -> str:
    """Names in two groups; of the pictures or clips one knows what they lack."""
    bare = [name for name in skipped if kind.has(name)]
    others = [name for name in skipped if not kind.has(name)]
    groups = (
        (bare, f"a {kind.one} without a caption", f"{kind.one}s without a caption"),
        (others, f"a file of no {kind.one}", f"files of no {kind.one}"),
    )
    found = [
        f"{one if len(some) == 1 else many}{named(some)}" for some, one, many in groups if some
    ]
    return ", ".join(found)
