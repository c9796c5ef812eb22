"""A picture from outside as a given frame of a clip: a file, a clip's file, or Pillow's image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mdm_apple.clip_file.read import on_white
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.container import Container, clip_container
from mdm_apple.data.clips.decode import OneFrame
from mdm_apple.data.clips.decoder import StillPictureError, decoders
from mdm_apple.data.read_picture import picture_size, read_square
from mdm_apple.errors import MdmError, require_installed
from mdm_apple.sampling.given_frames import GivenFrames
from mdm_apple.sampling.inner_model import level_of_side, require_clip

FramePicture = str | Path | Image.Image
MOST = 2048  # pixels of a side, to which the frames of larger clips are reduced first
MOVIES = ("mov", "matroska")


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
        None if first is None else _square(first, side, last=True),
        None if last is None else _square(last, side, last=False),
    )


def frame_of_clip(path: Path, *, last: bool) -> Pixels:
    """The last frame of a clip's file, or the first, as it is seen: its centre square (S, S, 3).

    The file is from outside, so another process decodes it. Raises MdmError, MissingPackageError
    for a movie without PyAV, StillPictureError for a picture.
    """
    if _container(path) in MOVIES:
        require_installed("av")
    with decoders(1) as processes:
        return processes.decode(path, OneFrame(last, MOST)).pixels[0]


def _square(picture: FramePicture, side: int, *, last: bool) -> Pixels:
    """A picture as (side, side, 3) bytes. last: which frame of a clip's file."""
    if isinstance(picture, Image.Image):
        return _resized(on_white(picture), side)
    path = Path(picture)
    if not path.is_file():
        raise MdmError(f"{path}: no such file.")
    if _container(path) is not None:
        try:
            return _resized(Image.fromarray(frame_of_clip(path, last=last)), side)
        except StillPictureError:  # a PNG or WebP with the marks of a clip
            pass
    picture_size(path)
    return read_square(path, side)


def _container(path: Path) -> Container | None:
    try:
        return clip_container(path)
    except OSError:  # whoever reads it as a picture says what is wrong
        return None


def _resized(image: Image.Image, side: int) -> Pixels:
    """The centre square. A movie's frames are enlarged by repetition, which is undone exactly."""
    if image.width == image.height and image.width % side == 0:
        return np.array(image.reduce(image.width // side))
    return np.array(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))
