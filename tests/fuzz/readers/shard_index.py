"""The table of an index of shards, with a note that names its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mdm_apple.config.strict_json import to_json
from mdm_apple.data.shards.index_files import INDEX, TABLE, VERSION, IndexNote, rows_file, rows_path
from mdm_apple.data.shards.open_index import OpenIndex
from mdm_apple.data.shards.rows import Row

ROW_BYTES = Row(512, 10, 1024, 3, 8, 8, 0.5, 0.25).as_bytes()


def read(folder: Path, data: bytes) -> None:
    (folder / TABLE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    note = IndexNote(VERSION, "shards", "txt", (), 2, 6, digest)
    (folder / INDEX).write_text(to_json(note), encoding="utf-8")
    index = OpenIndex(folder)
    for shard in range(2):
        place = rows_path(folder, shard)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(rows_file(ROW_BYTES * int(index.samples[shard]), len(ROW_BYTES)))
        assert (folder / "shards").resolve() in index.shard_path(shard).parents
    index.row(3)
