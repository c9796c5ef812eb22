"""Where the captions of a sample stand: in its .txt, or in fields of its .json.

Input: "txt", "json.FIELD" or "txt:0.5,json.FIELD:0.5", and a member's bytes. Output: the cleaned
caption, or why there is none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError
from mdm_apple.text.captions import clean_caption

MAX_JSON_BYTES = 1 << 20
MAX_CAPTIONS = 8  # of a sample
_SHARE = re.compile(r"\d{1,6}(\.\d{1,9})?")
NO_CAPTION, EMPTY, TOO_LARGE, NOT_TEXT = (
    "no caption",
    "an empty caption",
    "a caption that is too large",
    "a caption that is no UTF-8 text",
)


class UnusableCaptionError(Exception):
    """A sample without a caption; its text is one of the reasons above."""


@dataclass(frozen=True)
class CaptionField:
    """field: of the .json; None for the .txt."""

    field: str | None = None

    @staticmethod
    def of(written: str) -> CaptionField:
        """From "txt" or "json.FIELD". Raises DataError."""
        kind, dot, field = written.partition(".")
        if written == "txt":
            return CaptionField()
        if kind == "json" and dot and field:
            return CaptionField(field)
        raise DataError(f"captions: expected txt or json.FIELD, got {written!r}.")

    def __str__(self) -> str:
        return "txt" if self.field is None else f"json.{self.field}"

    @property
    def kind(self) -> str:
        """The suffix of the member that holds it, without a dot."""
        return "txt" if self.field is None else "json"

    @property
    def most_bytes(self) -> int:
        """A member of more is not read."""
        return MAX_CAPTION_BYTES if self.field is None else MAX_JSON_BYTES

    def caption(self, data: bytes) -> str:
        """The caption in a member's bytes. Raises UnusableCaptionError."""
        if self.field is None:
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise UnusableCaptionError(NOT_TEXT) from None
        else:
            value = json_object(data).get(self.field)
            if not isinstance(value, str):
                raise UnusableCaptionError(NO_CAPTION)
            if len(value) > MAX_CAPTION_BYTES:
                raise UnusableCaptionError(TOO_LARGE)
            text = value
        # most captions are plain, and cleaning takes as long as all else
        plain = text.isascii() and text.isprintable()
        caption = " ".join(text.split()) if plain else clean_caption(text)
        if not caption:
            raise UnusableCaptionError(EMPTY)
        return caption


@dataclass(frozen=True)
class CaptionChoice:
    """Where captions stand, and how often each is drawn; shares add up to 1."""

    fields: tuple[CaptionField, ...]
    shares: tuple[float, ...]

    @staticmethod
    def of(written: str) -> CaptionChoice:
        """From its text; one alone needs no share. Raises DataError."""
        parts = [part.strip().rpartition(":") for part in written.split(",")]
        if len(parts) == 1 and not parts[0][1]:
            return CaptionChoice((CaptionField.of(written),), (1.0,))
        shares = [float(share) if _SHARE.fullmatch(share) else 0.0 for _, _, share in parts]
        if len(parts) > MAX_CAPTIONS or min(shares) <= 0:
            raise DataError(
                f"captions: expected up to {MAX_CAPTIONS} shares above 0, such as "
                f"txt:0.5,json.FIELD:0.5, got {written[:80]!r}."
            )
        fields = tuple(CaptionField.of(field) for field, _, _ in parts)
        if len(set(fields)) < len(fields):
            raise DataError(f"captions: {written[:80]!r} names one of them twice.")
        return CaptionChoice(fields, tuple(share / sum(shares) for share in shares))

    def __str__(self) -> str:
        if len(self.fields) == 1:
            return str(self.fields[0])
        pairs = zip(self.fields, self.shares, strict=True)
        return ",".join(f"{field}:{share:.6g}" for field, share in pairs)

    def drawn(self, there: Sequence[bool], uniform: float) -> int:
        """One of the captions that are there. uniform: a number in [0, 1)."""
        shares = [share if has else 0.0 for share, has in zip(self.shares, there, strict=True)]
        left = uniform * sum(shares)
        for place, share in enumerate(shares):
            left -= share
            if share and left < 0:
                return place
        return max(place for place, share in enumerate(shares) if share)  # rounded up to the end


def json_object(data: bytes) -> dict[str, object]:
    """The object in a .json; an empty one for anything else."""
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def score_in(values: dict[str, object], field: str) -> float:
    """A number of a .json; NaN where it has none."""
    value = values.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < 65504 else math.nan  # what float16 holds
