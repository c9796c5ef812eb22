"""One picture file from outside, as a square of sRGB pixels; nothing in it is trusted.

Input: a PNG, JPEG, WebP or BMP file. Output: its size from the header, the decoded square, or what
a check of it finds.
"""

from __future__ import annotations

import errno
import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from mdm_apple.config.types import Pixels
from mdm_apple.data.bare_picture import bare_picture
from mdm_apple.data.dataset import BadPictureError, DataError
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError, is_lfs_pointer

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # no other decoder runs, whatever the file name says
MAX_PIXELS = 89_000_000  # just below the limit at which Pillow warns
MAX_FILE_BYTES = 1 << 30  # of a file that is read as a whole
STRIP_PIXELS = 1 << 20  # that are hashed at once

OF_THE_MACHINE = frozenset(  # errors that no bytes of a file cause
    (
        *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
        *(errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.ENOTCONN, errno.EHOSTDOWN),
    )
)

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> the rotation or flip that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class InMemory:
    """The bytes of a picture file that lies inside another one. name: for messages."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def shown(path: object) -> str:
    """A file name for a message: escaped where it would break the line or the terminal."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True)
class Examined:
    """What a check of a picture finds besides that it can be decoded.

    sha256: of its upright pixels, with transparency on white, and its color profile; equal for the
        same picture in another file or format.
    """

    sha256: str
    gray: bool
    transparent: bool
    animated: bool


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as stored, from the header alone.

    Raises:
        BadPictureError: not a picture of the known formats, or more than MAX_PIXELS.
        FileError, MemoryError: the machine cannot read it now.
    """
    too_large = BadPictureError(
        shown(path),
        f"the picture has more than {MAX_PIXELS // 1_000_000} million pixels",
        "make a smaller copy",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(path) as image:
                width, height = image.size
    except _BOMBS:
        raise too_large from None
    except Exception as error:  # decoders fail on hostile headers in every possible way
        raise _unreadable(path, error) from None
    if width * height > MAX_PIXELS:
        raise too_large
    return width, height


def read_square(path: Path | InMemory, side: int) -> Pixels:
    """Decode, resize the shorter side to `side`, crop the centre: uint8 (side, side, 3), sRGB.

    EXIF rotation is applied and transparency is put on white. An embedded color profile is
    converted to sRGB, or ignored, as in browsers, if it does not fit its picture. The file must
    have passed `picture_size`; raises BadPictureError if the rest of it is damaged.
    """
    try:
        with _decoded(path, 3 * side) as image:
            return centre_square(image, side)
    except Exception as error:  # as above: zlib, struct, Index, Syntax, ... errors mean the same
        raise _unreadable(path, error) from None


def read_upright(path: Path) -> Image.Image:
    """Decode at full size, in 8 bits: EXIF rotation applied, transparency put on white.

    Colors stay as stored. The file must have passed `picture_size`; raises BadPictureError where
    `read_square` does.
    """
    try:
        with _decoded(path) as image:
            return _on_white(_resizable(_upright(image)))
    except Exception as error:  # as above
        raise _unreadable(path, error) from None


def read_layers(path: Path) -> Image.Image:
    """Decode at full size, in 8 bits, EXIF rotation applied; RGBA where a part is transparent.

    Colors stay as stored, with their profile. The file must have passed `picture_size`; raises
    BadPictureError where `read_square` does.
    """
    try:
        with _decoded(path) as image:
            return upright_layers(image)
    except Exception as error:  # as above
        raise _unreadable(path, error) from None


def upright_layers(image: Image.Image) -> Image.Image:
    """The same of an open picture. Its EXIF does not come along, so nothing turns it again."""
    turned = _resizable(_upright(image))
    if turned.mode == "RGBA" and turned.getchannel("A").getextrema() == (255, 255):
        turned = turned.convert("RGB")
    plain = Image.frombytes(turned.mode, turned.size, turned.tobytes())
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes):
        plain.info["icc_profile"] = profile
    return plain


def as_png(path: Path) -> bytes:
    """The file of the same pixels as a PNG, for formats that are not compressed.

    The file must have passed `picture_size`; raises BadPictureError where `read_square` does.
    """
    png = io.BytesIO()
    try:
        with _decoded(path) as image:
            image.save(png, "PNG")
    except Exception as error:  # as above
        raise _unreadable(path, error) from None
    return png.getvalue()


def examine(path: Path, side: int) -> Examined:
    """Decode every pixel at full size, and the square after that.

    One picture is in memory. The file must have passed `picture_size`; raises BadPictureError
    where `read_square` does.
    """
    try:
        with _decoded(path) as image:
            animated = bool(getattr(image, "is_animated", False))
            gray = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
            sha256, transparent = _content(image)
            centre_square(image, side)
    except Exception as error:  # as above
        raise _unreadable(path, error) from None
    return Examined(sha256, gray, transparent, animated)


def _content(image: Image.Image) -> tuple[str, bool]:
    """Hash of the upright picture, and whether a part of it is transparent; a strip at a time."""
    upright = _upright(image)
    profile = image.info.get("icc_profile")
    digest = hashlib.sha256(b"%d x %d " % upright.size)
    digest.update(profile if isinstance(profile, bytes) else b"")
    transparent = False
    rows = max(1, STRIP_PIXELS // upright.width)
    for top in range(0, upright.height, rows):
        box = (0, top, upright.width, min(top + rows, upright.height))
        strip = _resizable(upright.crop(box))
        if strip.mode == "RGBA":
            transparent |= strip.getchannel("A").getextrema() != (255, 255)
        digest.update(_on_white(strip).convert("RGB").tobytes())
    return digest.hexdigest(), transparent


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _opened(path: Path | InMemory) -> Image.Image:
    """Open a picture; one whose decoration Pillow refuses is opened without it."""
    try:
        source = io.BytesIO(path.data) if isinstance(path, InMemory) else path
        return Image.open(source, formats=FORMATS)
    except _BOMBS:
        raise
    except Exception as error:  # as above
        return _bare(path, error)


def _bare(path: Path | InMemory, error: Exception) -> Image.Image:
    """Open a picture without its decoration. Raises `error` if that does not help either."""
    try:
        if isinstance(path, InMemory):
            data = path.data
        elif path.stat().st_size > MAX_FILE_BYTES:
            raise error
        else:
            data = path.read_bytes()
        bare = bare_picture(data)
        if bare is None:
            raise error
        image = Image.open(io.BytesIO(bare.data), formats=(bare.format,))
    except _BOMBS:
        raise
    except Exception:
        raise error from None
    if bare.profile is not None:
        image.info["icc_profile"] = bare.profile
    return image


def _decoded(path: Path | InMemory, least: int | None = None) -> Image.Image:
    """Open a picture and decode its pixels.

    They are decoded before anything asks for EXIF: that would decode them too, and what refuses
    damaged EXIF must not pass damaged pixels.

    least: pixels of a side that are enough; a large JPEG is decoded smaller, which is far faster.
    """
    image = _opened(path)
    try:
        return _loaded(image, least)
    except Exception as error:  # decoration behind the pixels of a PNG is read only now
        again = _bare(path, error)
        try:
            return _loaded(again, least)
        except Exception:
            raise error from None


def _loaded(image: Image.Image, least: int | None) -> Image.Image:
    if least is not None:
        image.draft(None, (least, least))
    if image.width * image.height > MAX_PIXELS:
        raise OSError("it grew after its size was checked")
    image.load()
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # decoration never refuses pixels, and damaged EXIF fails in every way
        return 1


def centre_square(image: Image.Image, side: int, aspect: float = 1) -> Pixels:
    """The centre of a decoded picture, reduced or enlarged: uint8 (side, side, 3), sRGB.

    aspect: the width of its pixels over their height.
    """
    turn = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile")

    # Crop while resizing, so that a very long picture never becomes a very large one.
    wide, high = min(image.width, image.height / aspect), min(image.height, image.width * aspect)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    square = _resizable(image).resize(
        (side, side),
        Image.Resampling.LANCZOS,
        box=(left, top, left + wide, top + high),
        reducing_gap=3.0,
    )
    alpha = square.getchannel("A") if square.mode == "RGBA" else None
    square = _to_srgb(square.convert("RGB") if alpha else square, profile)
    if alpha:
        square = Image.composite(square, Image.new("RGB", square.size, "white"), alpha)
    # Rotation keeps the centre square, so rotating last gives the same picture for less work.
    return np.array(square if turn is None else square.transpose(turn))


def _resizable(image: Image.Image) -> Image.Image:
    """The picture in a mode that can be filtered: L, RGB, RGBA or CMYK, 8 bits each."""
    if image.mode.startswith("I"):  # 16-bit gray: plain conversion would clip, not scale
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes) and profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # damaged, or for another color space than the picture's
    return image.convert("RGB")


def _is_pointer(path: Path | InMemory) -> bool:
    if isinstance(path, InMemory):
        return is_lfs_pointer(path.data[:64])
    try:
        with path.open("rb") as file:
            return is_lfs_pointer(file.read(64))
    except OSError:
        return False


def _unreadable(path: Path | InMemory, error: Exception) -> DataError:
    """The refusal of a bad picture.

    Raises MemoryError or FileError where the machine failed: that says nothing about the picture,
    which must not be left out for it.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        raise FileError(f"{shown(path)}: cannot be read now; {system_reason(error)}")
    if isinstance(error, FileNotFoundError):
        return BadPictureError(shown(path), "no such file", "it existed when the folder was opened")
    if _is_pointer(path):
        return BadPictureError(
            shown(path), "a Git LFS pointer, not the picture itself", "run git lfs pull"
        )
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return BadPictureError(
        shown(path),
        f"cannot be read as a PNG, JPEG, WebP or BMP picture ({shown(reason)})",
        "repair or remove it",
    )
