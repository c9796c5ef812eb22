"""Small shards for tests: sound ones, as img2dataset writes them, and the ways to spoil one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.data.shards.write_index import IndexOptions, write_index

MTIME = 1700000000.25  # img2dataset's are fractional, so that each member has a pax header


def jpeg(seed: int, size: tuple[int, int] = (12, 8), quality: int = 75) -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tar(
    members: Sequence[tuple[str | tarfile.TarInfo, bytes]],
    form: int = tarfile.PAX_FORMAT,
    mtime: float = MTIME,
    pax_headers: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a tar file; a member is named, or described by a header of its own."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=pax_headers) as file:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                info.size, info.mtime = len(data), mtime
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sample(key: str, number: int, caption: str | None = None) -> list[tuple[str, bytes]]:
    """A picture, its .json and its .txt, in the order of img2dataset."""
    text = f"picture {number}" if caption is None else caption
    values = {"caption": text, "blip": f"a drawing {number}", "pwatermark": number / 100}
    return [
        (f"{key}.jpg", jpeg(number)),
        (f"{key}.json", json.dumps(values).encode()),
        (f"{key}.txt", text.encode()),
    ]


def write_shards(folder: Path, shards: int, samples: int, first: int = 0) -> Path:
    """Shards of so many samples each, as img2dataset writes them."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        numbers = range(first + shard * samples, first + (shard + 1) * samples)
        found = [member for n in numbers for member in sample(f"{shard:05d}{n:04d}", n)]
        (folder / f"{shard:05d}.tar").write_bytes(tar(found))
    return folder


def index_of(folder: Path, options: IndexOptions | None = None) -> Path:
    """An index of the shards in a folder, beside it."""
    out = folder.with_name(f"{folder.name}.index")
    write_index([str(folder)], out, options)
    return out
