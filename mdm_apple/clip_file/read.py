"""The frames of a clip's file, from outside: sizes are checked before anything is decoded."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.clip_file.embedded_text import FORMATS
from mdm_apple.clip_file.movie import MAX_SIDE, is_movie, movie_frames
from mdm_apple.clip_file.timing import check_fps, repeats
from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError

MAX_FRAMES = 4096
MAX_PIXELS = 1 << 26  # of all frames: 200 MB
# seconds of processor time, for a clip of ours and for anybody's
OURS, ANYBODYS = 4.0, 20.0


def read_clip(path: Path, fps: float) -> Pixels:
    """All frames (N, H, W, 3) at `fps`. Neighbours that a file holds as one become several again.

    Raises MdmError, and MissingPackageError for a movie without PyAV.
    """
    check_fps(fps)
    frames, times = list[Pixels](), list[int]()
    for frame, seconds in frames_of(path, OURS):
        if frames and frame.shape != frames[0].shape:
            raise MdmError(f"{path}: its frames differ in size; expected a clip of one size.")
        frames.append(frame)
        times.append(repeats(seconds, fps))
        pixels = sum(times) * frame.shape[0] * frame.shape[1]
        if sum(times) > MAX_FRAMES or pixels > MAX_PIXELS:
            raise MdmError(
                f"{path}: expected up to {MAX_FRAMES} frames, and {MAX_PIXELS >> 20} million "
                "pixels in all of them."
            )
    return np.repeat(np.stack(frames), times, axis=0)


def first_frame(path: Path) -> Pixels:
    """The first frame (H, W, 3) of a clip or picture. Raises as `read_clip` does."""
    return next(frames_of(path, ANYBODYS))[0]


def last_frame(path: Path) -> Pixels:
    """The last frame (H, W, 3) of a clip or picture. Raises as `read_clip` does."""
    ((frame, _),) = deque(frames_of(path, ANYBODYS), maxlen=1)
    return frame


def is_clip(path: Path) -> bool:
    """Whether a file is a movie, a GIF, or a PNG or WebP of several frames."""
    try:
        if is_movie(path):
            return True
        with Image.open(path, formats=FORMATS) as image:
            return image.format == "GIF" or getattr(image, "n_frames", 1) > 1
    except Exception:  # whoever reads it as a picture says what is wrong
        return False


def frames_of(path: Path, limit: float) -> Iterator[tuple[Pixels, float]]:
    """Frames (H, W, 3), one or more, and the seconds that each is shown; 0 in a still picture.

    limit: seconds of processor time. Raises MdmError, and MissingPackageError for a movie without
    PyAV.
    """
    if not path.is_file():
        raise MdmError(f"{path}: no such file.")
    found, ends = 0, time.process_time() + limit
    try:
        for shown in movie_frames(path) if is_movie(path) else _animation_frames(path):
            found += 1
            if found > MAX_FRAMES or time.process_time() > ends:
                raise MdmError(
                    f"{path}: is too long; expected up to {MAX_FRAMES} frames, decoded in "
                    f"{limit:g} s."
                )
            yield shown
    except (MdmError, MemoryError):
        raise
    except Exception:  # decoders fail on hostile files in every possible way
        raise _unreadable(path) from None
    if not found:
        raise _unreadable(path)


def _animation_frames(path: Path) -> Iterator[tuple[Pixels, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > MAX_SIDE:
                raise MdmError(f"{path}: expected sides up to {MAX_SIDE} pixels.")
            for k in itertools.count():
                try:
                    image.seek(k)
                except EOFError:
                    return
                image.load()  # a WebP knows only now how long this frame is shown
                shown = float(image.info.get("duration", 0)) / 1000
                yield np.asarray(on_white(image)), shown


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB, what is transparent in it on white."""
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")


def _unreadable(path: Path) -> MdmError:
    return MdmError(
        f"{path}: cannot be read as a clip or picture; expected a PNG, WebP, GIF, MP4 or MOV file."
    )
