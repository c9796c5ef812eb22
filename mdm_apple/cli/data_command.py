"""`mdm data check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from mdm_apple import api
from mdm_apple.cli.model_options import FILE, clips_per_file_option, config_option, preset_option
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.cli.progress import progress_bar
from mdm_apple.config.model import MAX_SIDE
from mdm_apple.data.check import Check
from mdm_apple.data.kinds import PICTURES
from mdm_apple.data.listing import counted
from mdm_apple.data.read_picture import shown
from mdm_apple.data.sheet import sheet, spread
from mdm_apple.errors import MdmError
from mdm_apple.sampling.pictures import save_png
from mdm_apple.text.captions import read_captions

LISTED = 10  # names of a kind that the text shows
WIDE = 160  # characters of a line that the text shows
JOINER = "\u200d"  # between the parts of an emoji; harmless, though not printable by itself


@dataclass(frozen=True)
class CheckRequest:
    """The options of `mdm data check`."""

    folder: Path
    preset_name: str | None
    config_path: Path | None
    model: str | None
    size: int | None
    captions: Path | None
    clips_per_file: int | None
    out: Path | None
    overwrite: bool


@click.group(
    epilog="""\b
Examples:
  mdm data check photos --preset emoji --out sheet.png
  mdm data check photos --size 256 --json

check has --help with examples, --json and --quiet.
"""
)
def command() -> None:
    """Check a folder of captioned pictures or clips before training."""


@command.command(
    "check",
    epilog="""\b
Examples:
  mdm data check photos --preset emoji --out sheet.png
  mdm data check photos --model flickr64 --captions some.txt --json
""",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@preset_option
@config_option
@click.option("--model", metavar="NAME", help="The model to train on from, instead of a preset.")
@click.option(
    "--size",
    type=click.IntRange(1, MAX_SIDE),
    help="Pixels of the pictures, or of frames, if no model is named.",
)
@click.option("--captions", type=FILE, help="Only pictures with these captions, one per line.")
@clips_per_file_option
@click.option(
    "--out", type=FILE, metavar="PNG", help="Write twelve pictures with captions, as trained on."
)
@overwrite_option
@output_options
@filling(CheckRequest)
def check(request: CheckRequest, output: Output) -> None:
    """Decode every picture or clip once and say what training would see.

    Names the pictures that are bad, missing, without a caption, too small for the model, cut by
    more than half, or there twice; of clips also those that are too short. docs/folders.md says
    how a folder may hold captions. Exit 0: training can start, and no picture is bad. Exit 1: a
    picture is bad or missing, or the folder cannot be understood. Exit 2: a wrong call.
    """
    if request.out is not None:
        refuse_existing(request.out, request.overwrite)
    captions = None if request.captions is None else read_captions(request.captions)
    with progress_bar(output, "file", desc="checking") as progress:
        found = api.check_data(
            request.folder,
            side=request.size,
            preset=request.preset_name,
            config=request.config_path,
            model=request.model,
            captions=captions,
            clips_per_file=request.clips_per_file,
            progress=progress,
        )
    chosen = spread(found.good)
    if request.out is not None and found.dataset is not None and chosen:
        save_png(request.out, sheet(found.dataset, chosen))
    output.result(_values(found, chosen, request.out), _text(found, chosen, request.out))
    refusal = found.refusal()
    if refusal is not None:
        raise MdmError(f"{shown(request.folder)}: {refusal}")


def _values(found: Check, chosen: Sequence[int], out: Path | None) -> dict[str, Any]:
    captions = found.captions()
    return {
        "folder": str(found.folder),
        "side": found.side,
        "ready": found.refusal() is None,
        "captions_from": found.source,
        "pictures": found.total,
        "used": len(found.good),
        "distinct_captions": len(set(captions)),
        "tokens": None if found.tokens is None else asdict(found.tokens),
        **_by_kind(found),
        "remarks": found.remarks,
        "sheet": None if out is None or not chosen else str(out),
        "shown": [{"file": name, "caption": text} for name, text in _shown(found, chosen)],
    }


def _by_kind(found: Check) -> dict[str, Any]:
    """Every name, by what was found."""
    return {
        "bad": found.bad,
        "missing": found.missing,
        "without_caption": found.without_caption,
        "captions_without_picture": found.without_picture,
        "other_files": found.other_files,
        "empty_captions": found.empty_captions,
        "too_small": found.too_small,
        "cropped": found.cropped,
        "duplicates": found.duplicates,
        "gray": found.gray,
        "transparent": found.transparent,
        "animated": found.animated,
        "too_short": found.too_short,
    }


def _shown(found: Check, chosen: Sequence[int]) -> list[tuple[str, str]]:
    """Names and captions of the pictures of the sheet."""
    if found.dataset is None:
        return []
    captions = found.dataset.captions()
    return [(found.dataset.files[index].name, captions[index]) for index in chosen]


def _text(found: Check, chosen: Sequence[int], out: Path | None) -> str:
    captions = found.captions()
    distinct = len(set(captions))
    size = "" if found.side is None else f" at {found.side} px"
    different = "1 different caption" if distinct == 1 else f"{distinct} different captions"
    lines = [
        f"{shown(found.folder)}: training sees {_seen(found)}{size}, with {different} from "
        f"{_line(found.source)}."
    ]
    if distinct == 1 < len(captions):
        lines.append(f"All {found.kind.one}s have the caption {_line(captions[0])}.")
    lines += map(_line, found.remarks)
    if found.tokens is not None:
        lines.append(
            f"The longest caption has {found.tokens.longest} tokens; the model reads "
            f"{found.tokens.limit}."
        )
        lines += _listing(
            "captions are longer, and cut", found.tokens.cut, "caption is longer, and cut"
        )
    lines += _listing("bad", _with(found.bad, ""))
    lines += _listing("listed, but not there", _with(found.missing, ""))
    lines += _listing(
        f"{found.one}s without a caption, not used",
        found.without_caption,
        f"{found.one} without a caption, not used",
    )
    lines += _listing(
        f"captions without a {found.kind.one}, not used",
        found.without_picture,
        f"caption without a {found.kind.one}, not used",
    )
    lines += _listing("other files, not used", found.other_files, "other file, not used")
    lines += _listing("with an empty caption", found.empty_captions)
    lines += _listing("too small, and enlarged", _with(found.too_small, " px"))
    lines += _listing("too short, and not used", _with(found.too_short, " frames"))
    lost = {name: f"{share:.0%}" for name, share in found.cropped.items()}
    lines += _listing(
        "lose more than half to the square",
        _with(lost, " lost"),
        "loses more than half to the square",
    )
    equal = [" = ".join(some) for some in found.duplicates]
    lines += _listing(f"groups of equal {found.one}s", equal, f"group of equal {found.one}s")
    lines += _listing("gray, trained as RGB", found.gray)
    lines += _listing("transparent, put on white", found.transparent)
    lines += _listing("animated; the first frame is used", found.animated)
    if out is not None and chosen:
        lines.append(f"{shown(out)}: {len(chosen)} of the {found.kind.one}s, row by row:")
        lines += [
            f"  {number:2}  {_line(name)}: {_line(caption)}"
            for number, (name, caption) in enumerate(_shown(found, chosen), 1)
        ]
    return "\n".join(lines)


def _seen(found: Check) -> str:
    """How much of a folder is used; a file of clips may hold several, or none."""
    if found.kind is PICTURES:
        return f"{len(found.good)} of {counted(found.total, 'captioned picture')}"
    used = found.total - len(found.bad) - len(found.missing) - len(found.too_short)
    clips = counted(len(found.good), "clip")
    return f"{clips} from {used} of {counted(found.total, 'captioned file')}"


def _with(found: Mapping[str, object], unit: str) -> list[str]:
    return [f"{name}: {value}{unit}" for name, value in found.items()]


def _listing(title: str, entries: Sequence[str], one: str | None = None) -> list[str]:
    """A heading with the count, and the first entries below it. one: the title of one entry."""
    if not entries:
        return []
    more = len(entries) - LISTED
    if len(entries) == 1 and one is not None:
        title = one
    lines = [f"{len(entries)} {title}:", *(f"  {_line(entry)}" for entry in entries[:LISTED])]
    return [*lines, f"  and {more} more (--json lists all)"] if more > 0 else lines


def _line(text: str) -> str:
    """On one line, and safe for a terminal: what cannot be printed is escaped."""
    some = text if len(text) <= WIDE else f"{text[:WIDE]}..."
    return "".join(c if c.isprintable() or c == JOINER else ascii(c)[1:-1] for c in some)
