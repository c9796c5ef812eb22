"""All frames of a clip that was written here; sizes are checked before anything is decoded.

Movies are not read: they do not hold their frames exactly.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mdm_apple.clip_file.embedded_text import FORMATS
from mdm_apple.clip_file.timing import check_fps, repeats
from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError

MAX_FRAMES = 4096
MAX_PIXELS = 1 << 26  # of all frames: 200 MB
MAX_SIDE = 4096
CPU_SECONDS = 4.0


def read_clip(path: Path, fps: float) -> Pixels:
    """All frames (N, H, W, 3) at `fps`. Neighbours that a file holds as one become several again.

    Raises MdmError, also for a movie.
    """
    check_fps(fps)
    frames, times = list[Pixels](), list[int]()
    for frame, seconds in _frames_of(path):
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


def _frames_of(path: Path) -> Iterator[tuple[Pixels, float]]:
    """Frames (H, W, 3), one or more, and the seconds that each is shown; 0 in a still picture."""
    if not path.is_file():
        raise MdmError(f"{path}: no such file.")
    found, ends = 0, time.process_time() + CPU_SECONDS
    try:
        for shown in _animation_frames(path):
            found += 1
            if found > MAX_FRAMES or time.process_time() > ends:
                raise MdmError(
                    f"{path}: is too long; expected up to {MAX_FRAMES} frames, decoded in "
                    f"{CPU_SECONDS:g} s."
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
        f"{path}: cannot be read as a clip or picture; expected a PNG, WebP or GIF file."
    )
