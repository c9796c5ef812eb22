"""Files of clips, made here: movies by PyAV, animations by Pillow, and boxes of MP4 by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mdm_apple.clip_file.read import read_clip
from mdm_apple.config.types import Pixels

WIDTH, HEIGHT = 64, 48
FIRST, STEP = 20, 5  # gray of the first frame, and from one to the next


def gray(count: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Pixels]:
    """Frames of one gray level each, so that a level tells which frame it was."""
    width, height = size
    return [np.full((height, width, 3), FIRST + STEP * k, np.uint8) for k in range(count)]


def which(level: float) -> int:
    """The frame that has this gray level."""
    return round((level - FIRST) / STEP)


def movie(
    path: Path,
    frames: Sequence[Pixels],
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    *,
    fps: Fraction | int = 8,
    times: Sequence[int] | None = None,
    ticks: int = 1000,
    aspect: Fraction | None = None,
    turn: tuple[float, bool, bool] | None = None,
    colors: tuple[int, int] | None = None,
    tag: int | None = None,
    notes: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Encode frames.

    Args:
        times: when each begins, in ticks; `ticks` are those of a second. None: one after the other.
        turn: degrees counter-clockwise, flipped left-right, flipped up-down.
        colors: matrix, and range (1: limited, 2: full), as FFmpeg numbers them. tag: the
            matrix that the file says; None for the right one. notes: of the stream.
    """
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.metadata.update(notes or {})
        if times is not None:
            stream.codec_context.time_base = Fraction(1, ticks)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn is not None:
            stream.set_display_rotation(turn[0], turn[1], turn[2])
        if colors is not None:
            stream.codec_context.colorspace = colors[0] if tag is None else tag
            stream.codec_context.color_range = colors[1]
        for number, pixels_of_frame in enumerate(frames):
            kind = "rgba" if pixels_of_frame.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(pixels_of_frame, kind)
            if colors is not None:
                frame = frame.reformat(
                    format=pixels, dst_colorspace=colors[0], dst_color_range=colors[1]
                )
                frame.colorspace = colors[0] if tag is None else tag
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, ticks)
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def animation(path: Path, frames: Sequence[Pixels], milliseconds: int | list[int] = 120) -> Path:
    """Save frames as .gif, .webp or .png, without loss."""
    pictures = [Image.fromarray(frame) for frame in frames]
    more = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, **more
    )
    return path


def sizes_change(path: Path) -> Path:
    """A movie of JPEGs, of which the later ones are larger."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for number in range(16):
            side = 32 if number < 8 else 48
            context = av.CodecContext.create("mjpeg", "w")
            context.width = context.height = side
            context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 8)
            frame = av.VideoFrame.from_ndarray(gray(1, (side, side))[0], "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            for packet in (*context.encode(frame), *context.encode()):
                packet.stream, packet.time_base = stream, Fraction(1, 8)
                packet.pts = packet.dts = number
                file.mux(packet)
    return path


def sound(path: Path, codec: str) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=48000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=48000)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = 48000, 0
        resampler = av.AudioResampler(stream.format.name, "mono", 48000, 960)
        for part in resampler.resample(frame):
            for packet in stream.encode(part):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def box(name: bytes, *content: bytes) -> bytes:
    """A box of MP4."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def patched(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """A file with other bytes at a place behind the name of a box."""
    place = data.index(name) + 4 + offset
    return data[:place] + value + data[place + len(value) :]


def gif(size: tuple[int, int], frames: int, milliseconds: int, frame_size: int = 1) -> bytes:
    """A GIF of black frames in its corner, by hand."""
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    control = b"\x21\xf9\x04\x04" + struct.pack("<H", milliseconds // 10) + b"\0\0"
    place = b"\x2c" + struct.pack("<HHHHB", 0, 0, frame_size, frame_size, 0)
    return head + (control + place + b"\x02\x02\x44\x01\x00") * frames + b"\x3b"


def all_frames(path: Path, fps: float) -> Pixels:
    """Every frame (N, H, W, 3) of a file that was written here."""
    if path.suffix not in (".mp4", ".mov"):
        return read_clip(path, fps)
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
