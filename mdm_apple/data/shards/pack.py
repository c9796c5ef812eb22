"""A folder of captioned pictures becomes shards: the same files in the same order, unchanged."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from mdm_apple.config.ranges import in_range
from mdm_apple.data.dataset import DataError, Dataset
from mdm_apple.data.folder import Folder, Picture, nothing_to_use, read_folder, refusal_of
from mdm_apple.data.open import MOTION, SCENES, TWEMOJI, open_dataset
from mdm_apple.data.read_picture import as_png, shown
from mdm_apple.data.shards.index_shard import MAX_PICTURE_BYTES
from mdm_apple.data.shards.picture_sides import picture_sides
from mdm_apple.data.shards.samples import MAX_SAMPLES
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError
from mdm_apple.storage.whole_folder import whole_folder

SAMPLES_PER_SHARD = 1000
FIRST = "000000.tar"

_Packed = tuple[str, bytes, str]  # suffix and bytes of a picture, and its caption


@dataclass(frozen=True)
class Packed:
    """What was written. empty_captions: samples that an index leaves out. left_out: bad ones."""

    shards: int
    samples: int
    empty_captions: int
    left_out: dict[str, str]


def pack_shards(
    data: str,
    out: Path,
    *,
    samples: int = SAMPLES_PER_SHARD,
    side: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Packed:
    """Write the folder `out` of shards 000000.tar, 000001.tar and so on.

    Args:
        data: a folder of captioned pictures, or "twemoji".
        samples: pictures in a shard; the last may have fewer.
        side: pixels of emoji; for "twemoji" alone.
        skip_bad: leave out the pictures of a folder whose header is bad, and name them.
        progress: called with the pictures done, and their number.

    Raises DataError for data that cannot be packed; FileError if `out` is occupied or cannot be
    written.
    """
    in_range("samples", samples, 1, MAX_SAMPLES, error=DataError)
    total, pictures, left_out = _chosen(data, side, skip_bad)
    empty = 0
    with whole_folder(out, FIRST, overwrite) as place:
        shard: BinaryIO | None = None
        try:
            for number, (suffix, picture, caption) in enumerate(pictures):
                if number % samples == 0:
                    _finish(shard)
                    shard = (place / f"{number // samples:06d}.tar").open("wb")
                assert shard is not None, "opened for the first picture"
                empty += not caption
                _add(shard, f"{number:09d}.{suffix}", picture)
                _add(shard, f"{number:09d}.txt", caption.encode())
                progress(number + 1, total)
        finally:
            _finish(shard)
    return Packed(-(-total // samples), total, empty, left_out)


def _chosen(
    data: str, side: int | None, skip_bad: bool
) -> tuple[int, Iterator[_Packed], dict[str, str]]:
    """How many pictures, the pictures, and the bad ones."""
    if data == TWEMOJI:
        if side is None:
            raise DataError("size: twemoji are drawings without pixels; say how many with --size.")
        if skip_bad:
            raise DataError("skip-bad: applies to a folder of pictures; leave it out.")
        emoji = open_dataset(TWEMOJI, side)
        return len(emoji), _drawn(emoji), {}
    if data == SCENES or data.partition(":")[0] == MOTION:
        raise DataError(
            f"{data}: is drawn anew for each step, so it cannot be packed; give a folder of "
            "pictures, or twemoji."
        )
    if side is not None:
        raise DataError("size: applies to twemoji; pictures of a folder are packed as they are.")
    folder = read_folder(Path(data))
    if folder.faults and not skip_bad:
        raise refusal_of(folder)
    if not folder.pictures:
        raise nothing_to_use(folder)
    left_out = {fault.name: str(fault.error) for fault in folder.faults}
    return len(folder.pictures), _of_folder(folder), left_out


def _drawn(emoji: Dataset) -> Iterator[_Packed]:
    for index in range(len(emoji)):
        item, png = emoji.item(index), io.BytesIO()
        Image.fromarray(item.image).save(png, "PNG")
        yield "png", png.getvalue(), item.caption


def _of_folder(folder: Folder) -> Iterator[_Packed]:
    for picture in folder.pictures:
        suffix, data = _file(picture)
        if picture_sides(lambda place, count, of=data: of[place : place + count]) != picture.size:
            raise DataError(
                f"{shown(picture.path)}: has an unusual header, which an index of shards does not "
                "read; save it anew."
            )
        yield suffix, data, picture.caption


def _file(picture: Picture) -> tuple[str, bytes]:
    try:
        if picture.path.stat().st_size > MAX_PICTURE_BYTES:
            raise DataError(
                f"{shown(picture.path)}: expected at most {MAX_PICTURE_BYTES >> 20} MiB; make a "
                "smaller copy."
            )
        data = picture.path.read_bytes()
    except OSError as error:
        raise FileError(f"{shown(picture.path)}: cannot be read; {system_reason(error)}") from None
    if data.startswith(b"BM"):  # shards have no .bmp
        return "png", as_png(picture.path)
    return picture.path.suffix.lower().removeprefix("."), data


def _add(shard: BinaryIO, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # without times and owners, so equal pictures give equal shards
    header.size = len(data)
    shard.write(header.tobuf(tarfile.USTAR_FORMAT))
    shard.write(data)
    shard.write(bytes(-len(data) % tarfile.BLOCKSIZE))


def _finish(shard: BinaryIO | None) -> None:
    """Write the end mark and close."""
    if shard is not None:
        shard.write(bytes(2 * tarfile.BLOCKSIZE))
        shard.close()
