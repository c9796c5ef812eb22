"""`mdm index`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from mdm_apple import api
from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.cli.progress import progress_bar
from mdm_apple.data.listing import counted
from mdm_apple.data.read_picture import shown
from mdm_apple.data.shards.index_files import IndexNote


@dataclass(frozen=True)
class IndexRequest:
    """The options of `mdm index`."""

    shards: tuple[str, ...]
    out: Path
    captions: str
    score: tuple[str, ...]
    skip_bad_shards: int
    where: str | None
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm index shards --out train.index
  mdm index 'part-*/*.tar' --out train.index --captions json.blip --skip-bad-shards 3
"""
)
@click.argument("shards", metavar="SHARDS...", nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Folder of the index to make.")
@click.option(
    "--captions",
    metavar="txt|json.FIELD|txt:0.5,json.FIELD:0.5",
    default="txt",
    show_default=True,
    help="Where captions stand: in the .txt of a sample, in a field of its .json, or in several of "
    "these, each drawn with its share.",
)
@click.option(
    "--score",
    metavar="FIELD",
    multiple=True,
    help="Keep this number of the .json with each sample; may be given twice.",
)
@click.option(
    "--skip-bad-shards",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Leave out up to so many shards that are damaged, and name them.",
)
@click.option(
    "--where",
    metavar="CONDITION",
    help="Keep only such samples: 'side >= 256 and pwatermark < 0.8', of side, width, height and "
    "the scores.",
)
@overwrite_option
@output_options
@filling(IndexRequest)
def command(request: IndexRequest, output: Output) -> None:
    """Read the headers of tar shards once, for mdm train --data INDEX.

    SHARDS are folders of .tar files, patterns, text files with a path in each line, or .tar files,
    as img2dataset and WebDataset write them: neighbours such as 7.jpg, 7.txt and 7.json are a
    sample. A shard that is damaged or unusual is refused by name and byte. docs/scale.md says more.
    """
    refuse_existing(request.out, request.overwrite)
    with progress_bar(output, "shard", desc="indexing") as progress:
        note = api.index_shards(
            request.shards,
            request.out,
            captions=request.captions,
            scores=request.score,
            skip_bad_shards=request.skip_bad_shards,
            where=request.where,
            overwrite=request.overwrite,
            progress=progress,
        )
    output.result({"out": str(request.out), **asdict(note)}, _text(note, request.out))


def _text(note: IndexNote, out: Path) -> str:
    lines = [
        f"{shown(out)}: {counted(note.samples, 'sample')} in {counted(note.shards, 'shard')}, with "
        f"captions from {note.captions}."
    ]
    lines += _listing("sample", "left out, with", note.left_out)
    lines += _listing("member", "of other kinds, never opened", note.unopened)
    if note.skipped:
        lines.append(f"{counted(len(note.skipped), 'bad shard')} left out:")
        lines += [f"  {shown(name)}: {reason}" for name, reason in note.skipped.items()]
    return "\n".join(lines)


def _listing(one: str, how: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    parts = ", ".join(f"{shown(what)}: {count}" for what, count in counts.items())
    return [f"{counted(sum(counts.values()), one)} {how} ({parts})."]
