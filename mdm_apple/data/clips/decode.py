"""One file of clips, decoded: canvases of frames at equal steps in time.

Runs in a process of its own (`child`), because the decoders are C and the file is from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.container import START_BYTES, container_of
from mdm_apple.data.clips.limits import SHRINK, UnfitFileError
from mdm_apple.data.clips.read_animation import Animation
from mdm_apple.data.clips.sample_times import Shown, sampled
from mdm_apple.diffusion.canvas import tiled
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


@dataclass(frozen=True)
class Decoded:
    """The clips of a file.

    canvases: uint8 (clips, side, side, 3). size: width and height of a frame as it is seen.
    found: frames at the wanted steps, up to those of all clips.
    """

    canvases: Pixels
    size: tuple[int, int]
    found: int


class _Source(Protocol[T]):
    """An open file: its frames, and how one becomes a square."""

    @property
    def size(self) -> tuple[int, int]: ...
    def frames(self) -> Iterator[Shown[T]]: ...
    def square(self, picture: T, /, side: int) -> Pixels: ...


def decode(path: Path, wanted: Wanted) -> Decoded:
    """The clips of a file from its start on, without overlap; a rest of too few frames is no clip.

    Raises UnfitFileError, or whatever a decoder raises.
    """
    with path.open("rb") as file:
        start = file.read(POINTER_BYTES)
        file.seek(0)
        container = container_of(start[:START_BYTES])
        if container is None:
            raise _no_clip(start)
        if container not in ("gif", "webp", "png"):
            from mdm_apple.data.clips.read_movie import Movie  # PyAV may not be installed

            return _clips(Movie(file, container), wanted)
        if path.stat().st_size > MAX_ANIMATION_BYTES:
            raise UnfitFileError(f"it is larger than {MAX_ANIMATION_BYTES >> 20} MiB", SHRINK)
        return _clips(Animation(file, container), wanted)


def _no_clip(start: bytes) -> UnfitFileError:
    """The refusal of a file that begins as no clip does."""
    if not start:
        return UnfitFileError("it is empty")
    if is_lfs_pointer(start):
        return UnfitFileError("a Git LFS pointer, not the clip itself", "run git lfs pull")
    return UnfitFileError("it is no GIF, WebP, PNG, MP4, MOV, WebM or MKV file")


def _clips(source: _Source[T], wanted: Wanted) -> Decoded:
    """The clips of an open file."""
    count, side = wanted.frames, wanted.side // wanted.grid
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
