"""`mdm shards pack`."""

from __future__ import annotations

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
from mdm_apple.config.model import MAX_SIDE
from mdm_apple.data.listing import counted
from mdm_apple.data.read_picture import shown
from mdm_apple.data.shards.pack import SAMPLES_PER_SHARD, Packed
from mdm_apple.data.shards.samples import MAX_SAMPLES


@dataclass(frozen=True)
class PackRequest:
    """The options of `mdm shards pack`."""

    data: str
    out: Path
    samples: int
    size: int | None
    skip_bad: bool
    overwrite: bool


@click.group(
    epilog="""\b
Examples:
  mdm shards pack photos --out shards
  mdm shards pack twemoji --size 64 --out shards

pack has --help with examples, --json and --quiet.
"""
)
def command() -> None:
    """Make tar shards from a folder of captioned pictures."""


@command.command(
    "pack",
    epilog="""\b
Examples:
  mdm shards pack photos --out shards
  mdm shards pack twemoji --size 64 --samples 500 --out shards
""",
)
@click.argument("data", metavar="twemoji|DIR")
@click.option("--out", type=FOLDER, required=True, help="Folder of the shards to make.")
@click.option(
    "--samples",
    type=click.IntRange(1, MAX_SAMPLES),
    default=SAMPLES_PER_SHARD,
    show_default=True,
    help="Pictures in a shard.",
)
@click.option("--size", type=click.IntRange(1, MAX_SIDE), help="Pixels of emoji.")
@click.option(
    "--skip-bad", is_flag=True, help="Leave out pictures whose header is bad, and name them."
)
@overwrite_option
@output_options
@filling(PackRequest)
def pack(request: PackRequest, output: Output) -> None:
    """Pack pictures and captions into tar shards, in the order of training.

    Files are copied as they are; only .bmp becomes .png. mdm index makes an index of the shards,
    and mdm train --data INDEX --order folder trains as on the folder.
    """
    refuse_existing(request.out, request.overwrite)
    with progress_bar(output, "picture", desc="packing") as progress:
        packed = api.pack_shards(
            request.data,
            request.out,
            samples=request.samples,
            side=request.size,
            skip_bad=request.skip_bad,
            overwrite=request.overwrite,
            progress=progress,
        )
    output.result({"out": str(request.out), **asdict(packed)}, _text(packed, request.out))


def _text(packed: Packed, out: Path) -> str:
    lines = [
        f"{shown(out)}: {counted(packed.samples, 'picture')} in {counted(packed.shards, 'shard')}."
    ]
    if packed.empty_captions:
        lines.append(
            f"{packed.empty_captions} with an empty caption; mdm index leaves out such samples."
        )
    if packed.left_out:
        lines.append(f"{counted(len(packed.left_out), 'bad picture')} left out:")
        lines += [f"  {sentence}" for sentence in packed.left_out.values()]
    return "\n".join(lines)
