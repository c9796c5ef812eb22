"""A table of captions beside pictures, as jsonl, json, csv and tsv."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.data.caption_layout import list_captions
from mdm_apple.data.folder_tree import scan
from mdm_apple.errors import MdmError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


def read(folder: Path, data: bytes) -> None:
    """Raises a refusal if none of them can be read."""
    refusals: list[MdmError] = []
    for suffix in SUFFIXES:
        below = folder / suffix[1:]
        below.mkdir()
        for name in ("0.png", "1.png"):  # read later, if at all
            (below / name).touch()
        (below / f"metadata{suffix}").write_bytes(data)
        try:
            list_captions(scan(below.resolve()))
        except MdmError as error:
            refusals.append(error)
    if len(refusals) == len(SUFFIXES):
        raise refusals[0]
