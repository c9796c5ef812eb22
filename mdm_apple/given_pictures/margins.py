"""Margins that are made anew around a picture, on a canvas that keeps its side."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.errors import ConfigError


@dataclass(frozen=True)
class Margins:
    """Pixels of the canvas on each side of the picture.

    A margin on one side moves the picture, and what it pushes beyond the other side is lost.
    Margins on opposite sides reduce the picture, so that it is seen whole between them.
    """

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of(cls, text: str) -> Margins:
        """From LEFT,TOP,RIGHT,BOTTOM. Raises ConfigError."""
        numbers = re.fullmatch(r"\s*([0-9]{1,4}),([0-9]{1,4}),([0-9]{1,4}),([0-9]{1,4})\s*", text)
        if numbers is None:
            raise ConfigError(
                f"extend: expected left,top,right,bottom in pixels, such as 16,0,16,0; got "
                f"{text[:40]!r}."
            )
        margins = cls(*map(int, numbers.groups()))
        if not any(map(int, numbers.groups())):
            raise ConfigError("extend: all margins are 0, so nothing would be made anew.")
        return margins

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.right},{self.bottom}"

    def around(self, picture: Pixels) -> tuple[Pixels, NDArray[np.bool_]]:
        """The canvas (S, S, 3) with the moved picture, and where it is made anew (S, S).

        The picture's border is repeated outwards there. Raises ConfigError if nothing of the
        picture remains.
        """
        side = picture.shape[0]
        between = [
            a + b if a and b else 0 for a, b in ((self.left, self.right), (self.top, self.bottom))
        ]
        own = side - max(between)
        left = _place(self.left, self.right, own, side)
        top = _place(self.top, self.bottom, own, side)
        if own < 1 or not (-own < left < side and -own < top < side):
            raise ConfigError(
                f"extend: {self} leaves nothing of a picture of {side} px; give smaller margins."
            )
        if own < side:
            small = Image.fromarray(picture).resize((own, own), Image.Resampling.LANCZOS)
            picture = np.asarray(small)
        places = np.arange(side)
        rows, columns = places - top, places - left
        canvas = picture[np.clip(rows, 0, own - 1)][:, np.clip(columns, 0, own - 1)]
        kept = (rows >= 0) & (rows < own), (columns >= 0) & (columns < own)
        return np.ascontiguousarray(canvas), ~(kept[0][:, None] & kept[1][None, :])


def _place(before: int, after: int, own: int, side: int) -> int:
    """Where a picture of `own` pixels begins on a side of the canvas."""
    if before and after:
        return before + (side - before - after - own) // 2
    if before:
        return before
    return side - after - own if after else (side - own) // 2
