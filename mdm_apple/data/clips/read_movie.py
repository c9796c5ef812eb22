"""The frames of the video in an MP4, MOV, WebM or MKV file, by PyAV."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.container import Container
from mdm_apple.data.clips.limits import (
    MAX_PIXELS,
    UnfitFileError,
    check_count,
    check_length,
    check_size,
)
from mdm_apple.data.clips.sample_times import Shown
from mdm_apple.data.read_picture import centre_square

HIGH_DEFINITION = 720  # lines, from which colors without a tag are those of BT.709
MOST_STRETCHED = 16  # a pixel's width over its height, or the reverse

_COLORS = {  # what a frame says -> how it is converted
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# the same bytes on every processor
_EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
)


class Movie:
    """An open file with a video in it.

    size: of a frame as it is seen, in pixels. Raises UnfitFileError, or whatever PyAV raises.
    """

    def __init__(self, file: BinaryIO, container: Container) -> None:
        with _said_by_ffmpeg():
            self._file: InputContainer = av.open(
                file, "r", format=container, metadata_errors="ignore", io_open=_nothing_else
            )
        stream = self._file.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise UnfitFileError("it holds no video")
        self._stream = stream
        context: Any = stream.codec_context
        if context is None:
            raise UnfitFileError("its video is of a kind that is not known here")
        check_size(context.width, context.height)
        if self._file.duration is not None:  # in microseconds
            check_length(self._file.duration / 1_000_000)
        self._stored = (context.width, context.height)
        self._aspect = _aspect(stream)
        self._transparent = _transparent_decoder(stream)
        for decoder in filter(None, (context, self._transparent)):
            decoder.thread_count = 1
            decoder.options = {"max_pixels": str(MAX_PIXELS)}  # before it makes room for them
        self._turned = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as they are seen; known once a frame is read."""
        width, height = round(self._stored[0] * self._aspect), self._stored[1]
        return (height, width) if self._turned else (width, height)

    def frames(self) -> Iterator[Shown[VideoFrame]]:
        """Each frame in the order in which it is seen."""
        spacing = Fraction(0)
        last: Fraction | None = None
        for number, frame in enumerate(self._decoded(), 1):
            check_count(number)
            if (frame.width, frame.height) != self._stored:
                raise UnfitFileError("its frames change their size")
            if frame.pts is None or frame.time_base is None:
                raise UnfitFileError("a frame says no time")
            if frame.is_corrupt:
                raise UnfitFileError("a frame is damaged")
            tick = Fraction(frame.time_base)
            start = frame.pts * tick
            spacing = spacing if last is None else start - last
            stop = start + (frame.duration * tick if frame.duration > 0 else spacing)
            last = start
            self._turned = _turn(frame)[0]
            yield Shown(frame, start, stop, tick / 2)

    def _decoded(self) -> Iterator[VideoFrame]:
        with _said_by_ffmpeg():
            if self._transparent is None:
                yield from self._file.decode(self._stream)
                return
            for packet in self._file.demux(self._stream):
                yield from self._transparent.decode(packet)

    def square(self, frame: VideoFrame, side: int) -> Pixels:
        """The centre of a frame as it is seen: uint8 (side, side, 3)."""
        transparent = any(part.is_alpha for part in frame.format.components)
        kind = "RGBA" if transparent else "RGB"
        untagged = Colorspace.ITU709 if frame.height >= HIGH_DEFINITION else Colorspace.ITU601
        converted = frame.reformat(
            format="rgba" if transparent else "rgb24",
            src_colorspace=_COLORS.get(frame.colorspace, untagged),
            interpolation=_EXACT,
            threads=1,
        )
        plane = converted.planes[0]
        size = (frame.width, frame.height)
        image = Image.frombytes(kind, size, memoryview(plane), "raw", kind, plane.line_size, 1)
        square = centre_square(image, side, float(self._aspect))
        swap, flip_x, flip_y = _turn(frame)
        # turning last gives the same picture for less work
        square = square.transpose(1, 0, 2) if swap else square
        return np.ascontiguousarray(square[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


@contextmanager
def _said_by_ffmpeg() -> Generator[None]:
    """What FFmpeg says is about the file, even where it has the number of an error of the disk."""
    try:
        yield
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise UnfitFileError(f"it cannot be decoded ({error.strerror})") from None


def _nothing_else(url: str, flags: int, options: dict[str, str]) -> Any:
    """A file that names others does not get them."""
    raise UnfitFileError("it names other files")


def _transparent_decoder(stream: VideoStream) -> Any:
    """A decoder of VP8 or VP9 that sees what is transparent; None where the usual one does."""
    said = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode")
    name = _TRANSPARENT.get(stream.codec_context.name)
    if said != "1" or name not in av.codecs_available:
        return None
    return av.CodecContext.create(name, "r")


def _aspect(stream: VideoStream) -> Fraction:
    """The width of a stored pixel over its height; 1 where nothing is said."""
    said = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if not said:
        return Fraction(1)
    if not 1 / MOST_STRETCHED <= said <= MOST_STRETCHED:
        raise UnfitFileError("its pixels are too far from squares")
    check_size(round(stream.codec_context.width * said), stream.codec_context.height)
    return Fraction(said)


def _turn(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored frame becomes the one that is seen: axes swapped, then left-right, up-down."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.int64)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, bool(a < 0), bool(d < 0)
    return True, bool(c < 0), bool(b < 0)
