"""One shard becomes rows: headers, captions and the first bytes of pictures are read, once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdm_apple.data.read_picture import MAX_PIXELS
from mdm_apple.data.shards.caption_field import (
    MAX_JSON_BYTES,
    NO_CAPTION,
    TOO_LARGE,
    CaptionChoice,
    UnusableCaptionError,
    json_object,
    score_in,
)
from mdm_apple.data.shards.picture_sides import picture_sides
from mdm_apple.data.shards.rows import SCORES, Row
from mdm_apple.data.shards.samples import Sample, samples
from mdm_apple.data.shards.shard_file import ShardFile
from mdm_apple.data.shards.tar import Member, members

MAX_PICTURE_BYTES = 256 << 20
MAX_SIDE = (1 << 16) - 1  # that a row holds
NO_PICTURE = "no picture"
NOT_READABLE = "a picture that is no JPEG, PNG or WebP"
PICTURE_TOO_LARGE = "a picture that is too large"


@dataclass
class IndexedShard:
    """rows: those of all usable samples. size: bytes of the shard.

    left_out: samples that are not used, by reason. unopened: members that are not looked at, by
    suffix.
    """

    size: int
    rows: bytearray = field(default_factory=bytearray)
    left_out: Counter[str] = field(default_factory=Counter[str])
    unopened: Counter[str] = field(default_factory=Counter[str])


class _LeftOutError(Exception):
    """A sample that is not used, and why."""


def index_shard(path: Path, captions: CaptionChoice, scores: Sequence[str] = ()) -> IndexedShard:
    """Read a shard's headers.

    Args:
        scores: up to two fields of the .json that hold numbers.

    Raises BadShardError for a shard that is damaged or unusual.
    """
    with ShardFile(path) as file:
        found = IndexedShard(file.size)
        for sample in samples(file.name, members(file), found.unopened):
            try:
                row = _row(file, sample, captions, scores)
            except _LeftOutError as reason:
                found.left_out[str(reason)] += 1
            else:
                found.rows += row.as_bytes()
    return found


def _row(file: ShardFile, sample: Sample, captions: CaptionChoice, scores: Sequence[str]) -> Row:
    picture = sample.get("picture")
    if picture is None:
        raise _LeftOutError(NO_PICTURE)
    places = _captions(file, sample, captions)
    if picture.size > MAX_PICTURE_BYTES:
        raise _LeftOutError(PICTURE_TOO_LARGE)
    sides = _sides(file, picture)
    if sides is None:
        raise _LeftOutError(NOT_READABLE)
    width, height = sides
    if width * height > MAX_PIXELS or max(sides) > MAX_SIDE:
        raise _LeftOutError(PICTURE_TOO_LARGE)
    first, second = _scores(file, sample, scores)
    return Row(
        picture.start, picture.size, *places[0], width, height, first, second, tuple(places[1:])
    )


def _captions(file: ShardFile, sample: Sample, captions: CaptionChoice) -> list[tuple[int, int]]:
    """Place and bytes of each caption; 0 bytes where it is not there. Raises if none is."""
    places: list[tuple[int, int]] = []
    reasons: list[str] = []
    for wanted in captions.fields:
        text = sample.get(wanted.kind)
        try:
            if text is None:
                raise UnusableCaptionError(NO_CAPTION)
            if text.size > wanted.most_bytes:
                raise UnusableCaptionError(TOO_LARGE)
            wanted.caption(_bytes(file, text))
            places.append((text.start, text.size))
        except UnusableCaptionError as reason:
            places.append((0, 0))
            reasons.append(str(reason))
    if len(reasons) == len(captions.fields):
        raise _LeftOutError(reasons[0])
    return places


def _bytes(file: ShardFile, member: Member) -> bytes:
    whole = len(member.ahead) == member.size
    return member.ahead if whole else file.read(member.start, member.size)


def _sides(file: ShardFile, picture: Member) -> tuple[int, int] | None:
    def read(place: int, count: int) -> bytes:
        count = max(0, min(count, picture.size - place))
        if place + count <= len(picture.ahead):
            return picture.ahead[place : place + count]
        return file.read(picture.start + place, count)

    return picture_sides(read)


def _scores(file: ShardFile, sample: Sample, fields: Sequence[str]) -> list[float]:
    found = sample.get("json")
    values: dict[str, object] = {}
    if fields and found is not None and found.size <= MAX_JSON_BYTES:
        values = json_object(_bytes(file, found))
    some = [score_in(values, name) for name in fields]
    return some + [math.nan] * (SCORES - len(some))
