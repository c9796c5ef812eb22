"""A finished picture and a preview of one, as the Python API returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError
from mdm_apple.sampling.pictures import Recipe, as_png, enlarge, tile, tile_steps
from mdm_apple.storage.files import atomic_file


@dataclass(frozen=True)
class Picture:
    """The picture of one prompt and seed.

    levels: (H, W, 3) bytes per level, highest first. recipe: how to make it again; None if sampling
    was stopped early. previews: levels at some steps, if requested.
    """

    levels: tuple[Pixels, ...]
    recipe: Recipe | None
    previews: tuple[tuple[Pixels, ...], ...] = ()

    @property
    def image(self) -> Image.Image:
        """The highest level, for Pillow."""
        return Image.fromarray(self.levels[0])

    @property
    def png(self) -> bytes:
        """The bytes that `save` writes: the picture with its recipe."""
        return as_png(self.levels[0], self.recipe)

    @property
    def strip(self) -> bytes:
        """A PNG of the previews: steps as columns, levels as rows. Raises MdmError without any."""
        if not self.previews:
            raise MdmError("strip: this picture has no previews; ask for them with preview_every.")
        return as_png(tile_steps(self.previews))

    def save(self, path: str | Path) -> None:
        """Write a PNG that contains its recipe; raises FileError."""
        with atomic_file(Path(path)) as file:
            file.write(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class StepPreview:
    """The clean estimates of all levels after step `index` (from 0) of `total`, highest first."""

    index: int
    total: int
    levels: tuple[Pixels, ...]

    @property
    def image(self) -> Image.Image:
        """The levels in a row, all enlarged to the same side."""
        return Image.fromarray(side_by_side(self.levels))

    def _repr_png_(self) -> bytes:
        return as_png(side_by_side(self.levels))


def side_by_side(levels: Sequence[Pixels]) -> Pixels:
    """Levels (H, W, 3) of one picture in a row, the small ones enlarged: (H, W', 3)."""
    side = levels[0].shape[0]
    return tile(np.stack([enlarge(level, side) for level in levels]), columns=len(levels))
