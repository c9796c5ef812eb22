"""A tar file of captioned pictures, with captions in .txt and in .json."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.data.shards.caption_field import CaptionField
from mdm_apple.data.shards.index_shard import index_shard
from mdm_apple.data.shards.rows import ROW, Row


def read(folder: Path, data: bytes) -> None:
    path = folder / "a.tar"
    path.write_bytes(data)
    for captions, scores in (("txt", ()), ("json.blip", ("pwatermark",))):
        rows = bytes(index_shard(path, CaptionField.of(captions), scores).rows)
        for at in range(0, len(rows), ROW.size):
            row = Row.of(rows[at : at + ROW.size])
            assert row.lies_within(len(data)), "a row leads out of its shard"
