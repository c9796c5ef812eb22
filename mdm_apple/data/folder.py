"""A folder of the user's captioned pictures; its files come from outside and are not trusted.

Input: a path. Output: a `Dataset` in the order of the file names, or one sentence of refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdm_apple.config.types import Pixels
from mdm_apple.data.caption_layout import LAYOUTS, Listing, list_captions, named
from mdm_apple.data.dataset import DataError, Dataset, hash_fields
from mdm_apple.data.folder_tree import scan
from mdm_apple.data.read_picture import read_square, shorter_side, shown


def open_folder(root: Path, side: int) -> Dataset:
    """Open a folder of pictures (.png .jpg .jpeg .webp .bmp) and their captions.

    `caption_layout` says where captions may come from. Headers of all pictures are read now, pixels
    later. The fingerprint covers names, file sizes, captions and side, not pixels.

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
        tree = scan(root)
        listing = list_captions(tree)
        paths = [tree.path(name, name) for name, _ in listing.pairs]
        sizes = [path.stat().st_size for path in paths]
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{shown(root)}: cannot be read ({shown(str(error))}).") from None
    if not paths:
        raise DataError(
            f"{shown(root)}: no captioned picture found. {LAYOUTS}{_unused(listing.skipped)}."
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
    return Dataset(side, captions, read, fingerprint, _warnings(listing, scales, side))


def _warnings(listing: Listing, scales: Sequence[int], side: int) -> list[str]:
    warnings = list(listing.remarks)
    captions = {caption for _, caption in listing.pairs}
    if len(captions) == 1 and len(listing.pairs) > 1:
        warnings.append(f"all {len(listing.pairs)} pictures have the caption {captions.pop()!r}.")
    small = [i for i, scale in enumerate(scales) if scale < side]
    if small:
        least = min(small, key=lambda i: scales[i])
        warnings.append(
            f"{len(small)} of {len(scales)} pictures are smaller than {side} px and are enlarged; "
            f"the smallest is {shown(listing.pairs[least][0])} with {scales[least]} px."
        )
    if listing.skipped:
        warnings.append(f"{len(listing.skipped)} files are not used{_unused(listing.skipped)}.")
    return warnings


def _unused(skipped: Sequence[str]) -> str:
    return named(skipped).replace("(", "(no caption or no picture: ", 1)
