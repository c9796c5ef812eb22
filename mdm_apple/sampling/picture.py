"""A finished picture and a preview of one, as the Python API returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.clip_file.write import check_clip_name, clip_bytes
from mdm_apple.config.types import Pixels
from mdm_apple.diffusion.canvas import untiled
from mdm_apple.errors import MdmError
from mdm_apple.sampling.pictures import (
    Recipe,
    as_png,
    enlarge,
    recipe_text,
    tile,
    tile_clip_steps,
    tile_steps,
)
from mdm_apple.storage.files import atomic_file


@dataclass(frozen=True)
class Picture:
    """The picture of one prompt and seed, or its clip where the model makes clips.

    levels: (H, W, 3) bytes per level, highest first; for clips, frames tiled row by row. recipe:
    how to make it again; None if sampling was stopped early. previews: levels at some steps, if
    requested. frame_counts: frames of each level of a clip. fps: frames a second; None for a
    picture.
    """

    levels: tuple[Pixels, ...]
    recipe: Recipe | None
    previews: tuple[tuple[Pixels, ...], ...] = ()
    frame_counts: tuple[int, ...] = (1,)
    fps: float | None = None

    @property
    def frames(self) -> Pixels:
        """The frames (N, S, S, 3) of the highest level; a picture is one."""
        return untiled(self.levels[0], self.frame_counts[0])

    @property
    def images(self) -> list[Image.Image]:
        """The frames, for Pillow."""
        return [Image.fromarray(frame) for frame in self.frames]

    @property
    def image(self) -> Image.Image:
        """The highest level, for Pillow; of a clip, its first frame."""
        return self.images[0]

    @property
    def png(self) -> bytes:
        """A PNG with the recipe; a clip is an animated one."""
        if self.fps is None:
            return as_png(self.levels[0], self.recipe)
        return clip_bytes(self.frames, self.fps, ".png", recipe_text(self.recipe))

    @property
    def strip(self) -> bytes:
        """A PNG of the previews. Raises MdmError without any.

        Pictures have steps as columns and levels as rows; clips have steps as rows and frames as
        columns, one level under the other.
        """
        if not self.previews:
            raise MdmError("strip: this picture has no previews; ask for them with preview_every.")
        if self.fps is None:
            return as_png(tile_steps(self.previews))
        return as_png(
            tile_clip_steps([list(map(untiled, step, self.frame_counts)) for step in self.previews])
        )

    def save(self, path: str | Path) -> None:
        """Write a file that contains the recipe: a PNG, or of a clip what the suffix says.

        A clip becomes .png (animated) or .webp, both lossless, .gif with 256 colours, or .mp4 or
        .mov, which need the extra `video`. Raises FileError, and MdmError for other suffixes.
        """
        contents = self._contents(Path(path))
        with atomic_file(Path(path)) as file:
            file.write(contents)

    def _contents(self, path: Path) -> bytes:
        if self.fps is None:
            return self.png
        check_clip_name(path, self.fps)
        return clip_bytes(self.frames, self.fps, path.suffix.lower(), recipe_text(self.recipe))

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
