"""A tar file of captioned pictures, with captions in .txt and in .json."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.data.shards.caption_field import CaptionChoice
from mdm_apple.data.shards.index_shard import index_shard
from mdm_apple.data.shards.rows import Row, row_bytes


def read(folder: Path, data: bytes) -> None:
    path = folder / "a.tar"
    path.write_bytes(data)
    for captions, scores in (("txt", ()), ("txt:1,json.blip:1", ("pwatermark",))):
        choice = CaptionChoice.of(captions)
        rows, size = bytes(index_shard(path, choice, scores).rows), row_bytes(len(choice.fields))
        for at in range(0, len(rows), size):
            row = Row.of(rows[at : at + size])
            assert row.lies_within(len(data)), "a row leads out of its shard"
