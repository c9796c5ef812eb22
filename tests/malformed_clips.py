"""Files from outside in the place of clips: each is refused with one sentence, or holds no clip."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from clip_files import animation, box, gif, gray, movie, patched, sizes_change, sound

# What is asked of each, at 8 frames a second; a file of 16 frames holds two clips.
FRAMES, FPS, MOST = 4, 8.0, 2
CANNOT = "it cannot be decoded ("
NO_CLIP = "it is no GIF, WebP, PNG, MP4, MOV, WebM or MKV file"
LARGE = "its frames have more than 8192 pixels a side, or 89 million"


@dataclass(frozen=True)
class Hostile:
    """says: part of the sentence; a number if the file is read, and holds so many clips.

    build: writes the file into a folder. good: a movie of 16 frames lies there as good.mp4.
    """

    name: str
    says: str | int
    build: Callable[[Path], Path]


def raw(name: str, says: str | int, file: str, data: bytes | Callable[[], bytes]) -> Hostile:
    def build(folder: Path) -> Path:
        (folder / file).write_bytes(data if isinstance(data, bytes) else data())
        return folder / file

    return Hostile(name, says, build)


def changed(
    name: str, says: str | int, change: Callable[[bytes], bytes], file: str = "good.mp4"
) -> Hostile:
    """A good file, after `change` was at it."""

    def build(folder: Path) -> Path:
        path = folder / f"bad{Path(file).suffix}"
        path.write_bytes(change(good(folder, file).read_bytes()))
        return path

    return Hostile(name, says, build)


def good(folder: Path, file: str) -> Path:
    """A file of 16 frames."""
    path = folder / file
    if not path.exists():
        match path.suffix:
            case ".gif" | ".webp" | ".png":
                animation(path, gray(16))
            case ".mkv":
                movie(path, gray(16), "ffv1", "bgr0")
            case ".webm":
                movie(path, gray(16), "libvpx", deadline="realtime")
            case ".mov":
                movie(path, gray(16), "qtrle", "rgb24")
            case _:
                movie(path, gray(16), "libx264", preset="ultrafast")
    return path


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def noisy(data: bytes) -> bytes:
    """Two thirds of it are noise."""
    kept = len(data) // 3
    return data[:kept] + np.random.RandomState(0).bytes(len(data) - kept)


def noise_in(name: bytes) -> Callable[[bytes], bytes]:
    """All bytes of a box but its size and name are noise."""

    def change(data: bytes) -> bytes:
        place = data.index(name)
        size = struct.unpack(">I", data[place - 4 : place])[0] - 8
        noise = np.random.RandomState(1).bytes(size)
        return data[: place + 4] + noise + data[place + 4 + size :]

    return change


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def apng(
    width: int, height: int, frames: int, pixels: bytes, again: int = 1, kind: int = 0
) -> bytes:
    """An APNG; pixels: packed, of each frame. frames: as it says, `again` as it holds.

    kind: of colors; 0 is gray, 6 is RGBA.
    """
    control = struct.pack(">IIIIHHBB", width, height, 0, 0, 125, 1000, 0, 0)
    parts = [
        b"\x89PNG\r\n\x1a\n",
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
    ]
    parts.append(png_chunk(b"acTL", struct.pack(">II", frames, 0)))
    number = 0
    for place in range(again):
        parts.append(png_chunk(b"fcTL", struct.pack(">I", number) + control))
        number += 1
        if place:
            parts.append(png_chunk(b"fdAT", struct.pack(">I", number) + pixels))
            number += 1
        else:
            parts.append(png_chunk(b"IDAT", pixels))
    return b"".join([*parts, png_chunk(b"IEND", b"")])


def packed_zeros(width: int, height: int) -> bytes:
    """The pixels of a black PNG."""
    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    return b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])


def webp(width: int, height: int) -> bytes:
    """A WebP that says that it is animated, and of this size."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def outside_reference(data: bytes) -> bytes:
    """A MOV whose frames are said to lie in another file: good.mov beside it, as an alias."""
    name = b"good.mov"
    alias = bytes(10) + b"\4disk".ljust(28, b"\0") + bytes(12)
    alias += (
        bytes([len(name)])
        + name.ljust(63, b"\0")
        + bytes(16)
        + struct.pack(">hh", 1, 1)
        + bytes(16)
    )
    alias += struct.pack(">hh", 2, len(name)) + name + struct.pack(">hh", -1, 0)
    start = data.index(b"dref") - 4
    end = start + struct.unpack(">I", data[start : start + 4])[0]
    new = box(b"dref", struct.pack(">II", 0, 1), box(b"alis", bytes(4), alias.ljust(160, b"\0")))
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = data.rindex(parent, 0, start) - 4
        size = struct.unpack(">I", data[place : place + 4])[0] + len(new) - (end - start)
        data = data[:place] + struct.pack(">I", size) + data[place + 4 :]
    return data[:start] + new + data[end:]


def nested_boxes() -> bytes:
    data = b""
    for _ in range(2000):
        data = box(b"moov", data)
    return FTYP + data


def packed_header() -> bytes:
    """A header that is a zlib bomb of 2 GB."""
    body = zlib.compress(bytes(1 << 20), 9) * 8
    packed = box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", 2 << 30), body))
    return FTYP + box(b"moov", packed)


def zipped() -> bytes:
    from io import BytesIO

    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.mp4", b"0")
    return file.getvalue()


def several(data: bytes) -> bytes:
    """An index of a hundred million frames."""
    place = data.index(b"stsz") + 4
    data = data[:place] + struct.pack(">III", 0, 1, 100_000_000) + data[place + 12 :]
    place = data.index(b"stts") + 4
    return data[:place] + struct.pack(">IIII", 0, 1, 100_000_000, 1) + data[place + 16 :]


def backwards(data: bytes) -> bytes:
    """The third frame of an MKV is shown at the start again."""
    place = data.index(b"\x81" + struct.pack(">h", 250)) + 1  # of the first track, in milliseconds
    return data[:place] + bytes(2) + data[place + 2 :]


def all_at_once(data: bytes) -> bytes:
    place = data.index(b"stts") + 4
    return data[:place] + struct.pack(">IIII", 0, 1, 16, 0) + data[place + 16 :]


def wide_pixels(data: bytes) -> bytes:
    """Pixels that are 60,000 times as wide as high."""
    return patched(data, b"pasp", 0, struct.pack(">II", 60000, 1))


def stretched(folder: Path) -> Path:
    path = movie(folder / "pasp.mp4", gray(16), "libx264", aspect=Fraction(2), preset="ultrafast")
    path.write_bytes(wide_pixels(path.read_bytes()))
    return path


def short(folder: Path) -> Path:
    return movie(folder / "short.mp4", gray(3))


def still(suffix: str) -> Hostile:
    return Hostile(
        f"still {suffix}",
        "a still picture, not a clip",
        lambda folder: animation(folder / f"one{suffix}", gray(1)),
    )


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2mp41")
EBML = b"\x1aE\xdf\xa3"
CONCAT = b"ffconcat version 1.0\nfile good.mp4\n"
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n"
WIDTH = 24  # from the name of a sample entry to the width in it

CASES = [
    # lists of other files, and files of other kinds
    raw("concat list", NO_CLIP, "list.mp4", CONCAT),
    raw("concat list behind ftyp", CANNOT, "list2.mp4", FTYP + CONCAT),
    raw("concat list behind EBML", CANNOT, "list.mkv", EBML + CONCAT),
    raw("HLS playlist", NO_CLIP, "hls.mp4", PLAYLIST),
    raw("HLS playlist behind ftyp", CANNOT, "hls2.mp4", FTYP + PLAYLIST),
    raw("DASH manifest", NO_CLIP, "dash.webm", b'<?xml version="1.0"?><MPD><BaseURL>good.mp4</BaseURL></MPD>'),
    raw("SDP session", NO_CLIP, "session.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
    raw("image sequence", NO_CLIP, "frames%03d.mov", b"P6 1 1 255 abc"),
    raw("AVI", NO_CLIP, "a.mov", b"RIFF\x24\0\0\0AVI LIST" + bytes(64)),
    raw("MPEG-TS", NO_CLIP, "ts.mp4", (b"\x47" + bytes(187)) * 8),
    raw("Ogg", NO_CLIP, "ogg.webm", b"OggS" + bytes(100)),
    raw("ZIP", NO_CLIP, "zip.mkv", zipped),
    raw("JPEG", NO_CLIP, "photo.png", b"\xff\xd8\xff\xe0" + bytes(100)),
    raw("text", NO_CLIP, "text.gif", b"a clip of a cat\n"),
    raw("empty", "it is empty", "empty.mp4", b""),
    raw("Git LFS pointer", "a Git LFS pointer, not the clip itself", "lfs.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    changed("MOV that names another file", "it holds no frame", outside_reference, "good.mov"),
    # damaged files
    *(changed(f"truncated {suffix}", CANNOT, half, f"good{suffix}") for suffix in (".mp4", ".mov", ".gif", ".png")),
    changed("truncated .webp", CANNOT, half, "good.webp"),
    changed("truncated .mkv", CANNOT, lambda data: data[: len(data) // 8], "good.mkv"),
    changed("truncated .webm", CANNOT, lambda data: data[:400], "good.webm"),
    changed("noise in .mp4", CANNOT, noise_in(b"mdat")),
    changed("noise for the header of .mp4", "it holds no video", noise_in(b"moov")),
    changed("noise in .mkv", CANNOT, noisy, "good.mkv"),
    changed("noise in .gif", CANNOT, noisy, "good.gif"),
    changed("noise in .webp", CANNOT, noisy, "good.webp"),
    raw("noise behind ftyp", CANNOT, "noise.mp4", FTYP + np.random.RandomState(2).bytes(4000)),
    raw("noise behind EBML", CANNOT, "noise.webm", EBML + np.random.RandomState(3).bytes(4000)),
    raw("EBML without end", CANNOT, "endless.mkv", EBML + b"\x01" + b"\xff" * 7 + bytes(100)),
    raw("signature of .png alone", CANNOT, "sign.png", b"\x89PNG\r\n\x1a\n"),
    raw("signature of .gif alone", CANNOT, "sign.gif", b"GIF89a"),
    raw("boxes in boxes", CANNOT, "boxes.mp4", nested_boxes),
    raw("zlib bomb for a header", "GiB of memory", "bomb.mov", packed_header),
    changed("unknown codec", "its video is of a kind that is not known here", lambda data: data.replace(b"avc1", b"zzzz")),
    # sizes, times and counts
    Hostile("frames change their size", "its frames change their size", lambda folder: sizes_change(folder / "sizes.mkv")),
    raw("30,000 px in .gif", LARGE, "wide.gif", gif((30000, 30000), 3, 120)),
    raw("30,000 px in .png", LARGE, "wide.png", lambda: apng(30000, 30000, 2, b"", 2)),
    raw("16,384 px in .webp", LARGE, "wide.webp", webp(16384, 16384)),
    changed("9,000 px in .mov", LARGE, lambda data: patched(data, b"rle ", WIDTH, struct.pack(">HH", 9000, 9000)), "good.mov"),
    changed("30,000 px in .mov", "its frames have no pixels", lambda data: patched(data, b"rle ", WIDTH, struct.pack(">HH", 30000, 30000)), "good.mov"),
    changed("no pixels in .mov", "its frames have no pixels", lambda data: patched(data, b"rle ", WIDTH, bytes(4)), "good.mov"),
    Hostile("pixels 60,000 times as wide as high", "its pixels are too far from squares", stretched),
    changed("a hundred million frames", "it holds no frame", several),
    Hostile("twelve minutes", "it lasts longer than 10 minutes", lambda folder: movie(folder / "long.mkv", gray(2), "ffv1", "bgr0", times=[0, 720_000])),
    changed("times that run backwards", "the times of its frames run backwards", backwards, "good.mkv"),
    changed("all frames at one time", 2, all_at_once),  # the decoder takes the usual pace
    changed("no clock", 2, lambda data: patched(data, b"mdhd", 12, bytes(4))),
    raw("25,000 frames in .gif", "it has more than 20000 frames", "many.gif", lambda: gif((8, 8), 25000, 120)),
    raw("an hour of .gif", "it lasts longer than 10 minutes", "hour.gif", lambda: gif((8, 8), 6, 600000)),
    raw("two thousand million frames in .png", "it has more than 20000 frames", "many.png", lambda: apng(8, 8, 2**31 - 1, packed_zeros(8, 8))),
    Hostile("sound alone in .mp4", "it holds no video", lambda folder: sound(folder / "sound.mp4", "aac")),
    Hostile("sound alone in .webm", "it holds no video", lambda folder: sound(folder / "sound.webm", "libopus")),
    Hostile("too few frames", 0, short),
    *(still(suffix) for suffix in (".png", ".webp", ".gif")),
    # what takes much
    raw("gray frames of 67 million pixels", 0, "gray.png", lambda: apng(8192, 8192, 3, packed_zeros(8192, 8192), 3)),
    raw("RGBA frames of 67 million pixels", "it takes more than 1 GiB of memory", "rgba.png", lambda: apng(8192, 8192, 2, packed_zeros(4 * 8192, 8192), 2, kind=6)),
]  # fmt: skip
