"""A folder of the user's captioned pictures; its files come from outside and are not trusted.

Input: a path. Output: a `Dataset` in the order of the file names, or one sentence of refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdm_apple.config.types import Pixels
from mdm_apple.data.caption_layout import LAYOUTS, list_captions
from mdm_apple.data.dataset import DataError, Dataset, File, hash_fields
from mdm_apple.data.folder_tree import is_picture, scan
from mdm_apple.data.listing import Fault, Listing, counted, named
from mdm_apple.data.read_picture import picture_size, read_square, shown


@dataclass(frozen=True)
class Picture:
    """A captioned picture of a folder, known by its header. size: width, height as stored."""

    file: File
    path: Path
    caption: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Folder:
    """What a folder holds; nothing is decoded. faults: captioned pictures that cannot be used."""

    root: Path
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
        raise _refusal(folder)
    return as_dataset(folder, side)


def as_dataset(folder: Folder, side: int) -> Dataset:
    """The pictures that can be used. Raises DataError if there are none."""
    pictures = folder.pictures
    if not pictures:
        raise _nothing_to_use(folder)

    def read(index: int) -> tuple[Pixels, float]:
        picture = pictures[index]
        return read_square(picture.path, side), float(min(picture.size))

    return Dataset(
        side,
        [picture.caption for picture in pictures],
        read,
        folder_fingerprint(side, [(p.file, p.caption) for p in pictures]),
        _warnings(folder, side),
        [picture.file for picture in pictures],
        {fault.name: str(fault.error) for fault in folder.faults},
    )


def read_folder(root: Path) -> Folder:
    """List a folder, and read the header of each captioned picture.

    Raises DataError for a missing folder, or one that can be read in two ways.
    """
    pictures: list[Picture] = []
    try:
        root = root.resolve()
        if not root.is_dir():
            raise DataError(
                f"{shown(root)}: no such folder. Give 'twemoji', 'scenes' or a folder of captioned "
                "pictures."
            )
        tree = scan(root)
        listing = list_captions(tree)
        faults = list(listing.faults)
        for name, caption in listing.pairs:
            try:
                path = tree.path(name, name)
                status = path.stat()
                file = File(name, status.st_size, status.st_mtime_ns)
                pictures.append(Picture(file, path, caption, picture_size(path)))
            except DataError as error:
                faults.append(Fault(name, error))
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{shown(root)}: cannot be read ({shown(str(error))}).") from None
    return Folder(root, listing, pictures, faults)


def _nothing_to_use(folder: Folder) -> DataError:
    """The refusal of a folder in which no picture can be used."""
    if folder.faults:
        return _refusal(folder)
    listing = folder.listing
    return DataError(
        " ".join(
            [
                f"{shown(folder.root)}: no captioned picture found. {LAYOUTS}.",
                *([f"Not used: {_unused(listing.skipped)}."] if listing.skipped else []),
                *listing.remarks,
            ]
        )
    )


def folder_fingerprint(side: int, pictures: Sequence[tuple[File, str]]) -> str:
    """Hex SHA-256 over files and captions in their order."""
    content = [part for file, text in pictures for part in (file.name, file.bytes, text)]
    return hash_fields(["folder", side, *content])


def _refusal(folder: Folder) -> DataError:
    """The first fault's sentence, and how many more there are."""
    first, more = str(folder.faults[0].error), len(folder.faults) - 1
    if not more:
        return folder.faults[0].error
    return DataError(
        f"{first.removesuffix('.')}; {more} more cannot be used, and `mdm data check` names them "
        "all."
    )


def _warnings(folder: Folder, side: int) -> list[str]:
    listing, pictures = folder.listing, folder.pictures
    warnings = list(listing.remarks)
    captions = {picture.caption for picture in pictures}
    if len(captions) == 1 and len(pictures) > 1:
        warnings.append(f"all {len(pictures)} pictures have the caption {captions.pop()!r}.")
    small = [picture for picture in pictures if min(picture.size) < side]
    if small:
        least = min(small, key=lambda picture: min(picture.size))
        verb = "is" if len(small) == 1 else "are"
        warnings.append(
            f"{len(small)} of {counted(len(pictures), 'picture')} {verb} smaller than {side} px "
            f"and {verb} enlarged; the smallest is {shown(least.file.name)} with "
            f"{min(least.size)} px."
        )
    if listing.skipped:
        count = len(listing.skipped)
        warnings.append(
            f"{counted(count, 'file')} {'is' if count == 1 else 'are'} not used: "
            f"{_unused(listing.skipped)}."
        )
    return warnings


def _unused(skipped: Sequence[str]) -> str:
    """Names in two groups; of the pictures one knows what they lack."""
    bare = [name for name in skipped if is_picture(name)]
    others = [name for name in skipped if not is_picture(name)]
    groups = (
        (bare, "a picture without a caption", "pictures without a caption"),
        (others, "a file of no picture", "files of no picture"),
    )
    found = [
        f"{one if len(some) == 1 else many}{named(some)}" for some, one, many in groups if some
    ]
    return ", ".join(found)
