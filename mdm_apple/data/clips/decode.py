"""One file of clips, decoded: canvases of frames at equal steps in time, one frame, or all.

Runs in a process of its own (`child`), because the decoders are C and the file is from outside.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mdm_apple.clip_file.read import MAX_PIXELS, read_clip
from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.container import START_BYTES, container_of
from mdm_apple.data.clips.limits import SHRINK, UnfitFileError
from mdm_apple.data.clips.read_animation import Animation
from mdm_apple.data.clips.sample_times import Shown, sampled
from mdm_apple.diffusion.canvas import frame_side, tiled
from mdm_apple.storage.files import is_lfs_pointer

MAX_ANIMATION_BYTES = 256 << 20  # Pillow reads some kinds as a whole
POINTER_BYTES = 64  # that show a Git LFS pointer

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """The clips that a model takes.

    side: pixels of a canvas. frames: of a clip, which tile it. fps: frames a second.
    most: clips of one file, one after the other.
    """

    side: int
    frames: int
    fps: float
    most: int

    @property
    def grid(self) -> int:
        """Frames along a side of a canvas."""
        return math.isqrt(self.frames)

    @property
    def frame_side(self) -> int:
        """Pixels on a side of a frame."""
        return frame_side(self.side, self.frames)


@dataclass(frozen=True)
class OneFrame:
    """The last frame of a file, or the first: its centre square, of up to `most` pixels a side."""

    last: bool
    most: int


@dataclass(frozen=True)
class AllFrames:
    """All frames of a clip that this package has written, at `fps`: see `clip_file.read`."""

    fps: float


Asked = Wanted | OneFrame | AllFrames


@dataclass(frozen=True)
class Decoded:
    """What was asked of a file.

    pixels: uint8 (number, height, width, 3), canvases or frames. size: width and height of a frame
    as it is seen. found: frames at the wanted steps, up to those of all clips.
    """

    pixels: Pixels
    size: tuple[int, int]
    found: int


def as_request(asked: Asked) -> dict[str, object]:
    """What is asked as values of JSON; see `asked_of`."""
    if isinstance(asked, OneFrame):
        return {"frame": asdict(asked)}
    return {"all" if isinstance(asked, AllFrames) else "clips": asdict(asked)}


def asked_of(request: dict[str, Any]) -> Asked:
    """What a request asks."""
    if "frame" in request:
        return OneFrame(**request["frame"])
    return AllFrames(**request["all"]) if "all" in request else Wanted(**request["clips"])


def most_bytes(asked: Asked) -> int:
    """Of the pixels of an answer."""
    if isinstance(asked, AllFrames):
        return 3 * MAX_PIXELS
    return 3 * (asked.most**2 if isinstance(asked, OneFrame) else asked.most * asked.side**2)


class _Source(Protocol[T]):
    """An open file: its frames, and how one becomes a square."""

    @property
    def size(self) -> tuple[int, int]: ...
    def frames(self) -> Iterator[Shown[T]]: ...
    def square(self, picture: T, /, side: int) -> Pixels: ...


def decode(path: Path, asked: Asked) -> Decoded:
    """What is asked of a file.

    Clips follow each other from its start on, without overlap; a rest of too few frames is no clip.
    Raises UnfitFileError, MdmError for AllFrames, or whatever a decoder raises.
    """
    if isinstance(asked, AllFrames):
        frames = read_clip(path, asked.fps)
        return Decoded(frames, (frames.shape[2], frames.shape[1]), len(frames))
    with path.open("rb") as file:
        start = file.read(POINTER_BYTES)
        file.seek(0)
        container = container_of(start[:START_BYTES])
        if container is None:
            raise _no_clip(start)
        if container not in ("gif", "webp", "png"):
            from mdm_apple.data.clips.read_movie import Movie  # PyAV may not be installed

            return _answer(Movie(file, container), asked)
        if path.stat().st_size > MAX_ANIMATION_BYTES:
            raise UnfitFileError(f"it is larger than {MAX_ANIMATION_BYTES >> 20} MiB", SHRINK)
        # equal frames become one when a GIF is written, so it may be a clip that stands still
        stands = container == "gif" and isinstance(asked, OneFrame)
        return _answer(Animation(file, container, least=1 if stands else 2), asked)


def _no_clip(start: bytes) -> UnfitFileError:
    """The refusal of a file that begins as no clip does."""
    if not start:
        return UnfitFileError("it is empty")
    if is_lfs_pointer(start):
        return UnfitFileError("a Git LFS pointer, not the clip itself", "run git lfs pull")
    return UnfitFileError("it is no GIF, WebP, PNG, MP4, MOV, WebM or MKV file")


def _answer(source: _Source[T], asked: Wanted | OneFrame) -> Decoded:
    return _clips(source, asked) if isinstance(asked, Wanted) else _frame(source, asked)


def _frame(source: _Source[T], asked: OneFrame) -> Decoded:
    """One frame of an open file."""
    shown = source.frames()
    found = deque(shown if asked.last else itertools.islice(shown, 1), maxlen=1)
    if not found:
        raise UnfitFileError("it holds no frame")
    square = source.square(found[0].picture, min(*source.size, asked.most))
    return Decoded(square[None], source.size, 1)


def _clips(source: _Source[T], wanted: Wanted) -> Decoded:
    """The clips of an open file."""
    count, side = wanted.frames, wanted.frame_side
    squares: list[Pixels] = []
    last: T | None = None
    for picture in sampled(source.frames(), wanted.fps, count * wanted.most):
        squares.append(squares[-1] if picture is last else source.square(picture, side))
        last = picture
    if not squares:
        raise UnfitFileError("it holds no frame")
    canvases = np.empty((len(squares) // count, wanted.side, wanted.side, 3), np.uint8)
    for place, canvas in enumerate(canvases):
        canvas[:] = tiled(np.stack(squares[place * count : (place + 1) * count]))
    return Decoded(canvases, source.size, len(squares))
