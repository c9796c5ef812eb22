"""A clip as an H.264 movie, by PyAV, which is imported only here and only when it is used."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.clip_file.timing import exact
from mdm_apple.config.types import Pixels
from mdm_apple.errors import require

MOVIES = (".mp4", ".mov")
LEAST_SIDE = 256  # players blur what is smaller
_BT709 = 1  # of primaries, transfer and matrix alike


def movie(frames: Pixels, fps: float, suffix: str, text: str | None) -> bytes:
    """H.264 in yuv420p, close to the frames but not equal to them: plays everywhere.

    Frames are enlarged by repetition to LEAST_SIDE or more, and to even sides. One thread: the
    same frames give the same bytes.
    """
    av: Any = require("av")
    file, shown = io.BytesIO(), _enlarged(frames)
    height, width = shown.shape[1:3]
    # else a MOV holds texts of up to 64 KiB, and begins again at zero above that
    options = {"movflags": "use_metadata_tags"} if suffix == ".mov" else {}
    with av.open(file, "w", format=suffix.removeprefix("."), options=options) as container:
        if text is not None:
            container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=exact(fps), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        coder = stream.codec_context
        coder.thread_count = 1
        coder.color_primaries = coder.color_trc = coder.colorspace = _BT709
        for pixels in shown:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    return file.getvalue()


def is_movie(path: Path) -> bool:
    """Whether a file begins as an MP4 or MOV does."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def movie_comment(path: Path) -> str | None:
    """The metadata `comment`. Raises MissingPackageError, and what PyAV raises."""
    av: Any = require("av")
    # The container is not guessed: a list of other files could stand in it.
    with av.open(str(path), format="mov", metadata_errors="strict") as container:
        return container.metadata.get("comment")


def _enlarged(frames: Pixels) -> Pixels:
    sides = frames.shape[1:3]
    factor = -(-LEAST_SIDE // min(sides))
    if factor % 2 and any(side % 2 for side in sides):
        factor += 1
    return np.repeat(np.repeat(frames, factor, axis=1), factor, axis=2)
