"""Where the caption of a sample stands: in its .txt, or in a field of its .json.

Input: "txt" or "json.FIELD", and a member's bytes. Output: the cleaned caption, or why there is
none.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import cast

from mdm_apple.data.dataset import MAX_CAPTION_BYTES, DataError
from mdm_apple.text.captions import clean_caption

MAX_JSON_BYTES = 1 << 20
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
