"""A picture from outside as a given frame of a clip: a file, a clip's file, or Pillow's image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mdm_apple.clip_file.read import first_frame, is_clip, last_frame, on_white
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Pixels
from mdm_apple.data.read_picture import picture_size, read_square
from mdm_apple.errors import MdmError
from mdm_apple.sampling.given_frames import GivenFrames
from mdm_apple.sampling.inner_model import level_of_side, require_clip

FramePicture = str | Path | Image.Image


def given_frames(
    config: ModelConfig,
    stop_at: int | None,
    first: FramePicture | None,
    last: FramePicture | None,
) -> GivenFrames:
    """The frames that a clip is to have, in the size of its highest level.

    Args:
        first: a picture, or a clip that goes on: its last frame. last: a picture, or a clip that
            follows: its first frame. The centre square is taken.

    Raises MdmError, also for a model of pictures.
    """
    require_clip(config, stop_at, {"first-frame": first, "last-frame": last})
    side = config.clip_shapes[level_of_side(config, stop_at)][1]
    return GivenFrames(
        None if first is None else _square(first, side, of_clip=last_frame),
        None if last is None else _square(last, side, of_clip=first_frame),
    )


def _square(picture: FramePicture, side: int, of_clip: Callable[[Path], Pixels]) -> Pixels:
    """A picture as (side, side, 3) bytes. of_clip: which frame of a clip's file."""
    if isinstance(picture, Image.Image):
        return _resized(on_white(picture), side)
    path = Path(picture)
    if not path.is_file():
        raise MdmError(f"{path}: no such file.")
    if is_clip(path):
        return _resized(Image.fromarray(of_clip(path)), side)
    picture_size(path)
    return read_square(path, side)


def _resized(image: Image.Image, side: int) -> Pixels:
    """The centre square. A movie's frames are enlarged by repetition, which is undone exactly."""
    if image.width == image.height and image.width % side == 0:
        return np.array(image.reduce(image.width // side))
    return np.array(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))
