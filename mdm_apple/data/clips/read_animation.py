"""The frames of a GIF, WebP or PNG animation, by their durations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.container import Container
from mdm_apple.data.clips.limits import (
    StillError,
    UnfitFileError,
    check_count,
    check_length,
    check_size,
    too_large,
)
from mdm_apple.data.clips.sample_times import Shown
from mdm_apple.data.read_picture import centre_square

# Half a tick of each format's clock in milliseconds, within which two times are equal: at 30 frames
# a second, the third one of a WebP begins after 67 ms. PNG has fractions; writers use thousandths.
SLACK: dict[Container, Fraction] = {
    "gif": Fraction(5),
    "webp": Fraction(1, 2),
    "png": Fraction(1, 2),
}
HURRIED, INSTEAD = 10, 100  # milliseconds: browsers show a frame of 10 or less for 100


class Animation:
    """An open file of frames, each as it is seen, with what earlier ones left.

    Equal neighbours may have become one frame of their joint duration when the file was written.
    size: of a frame, in pixels. least: frames, below which the file is a still. Raises
    UnfitFileError, or whatever Pillow raises.
    """

    def __init__(self, file: BinaryIO, container: Container, least: int = 2) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                self._image = Image.open(file, formats=(container.upper(),))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise too_large() from None
        except UnidentifiedImageError:
            raise UnfitFileError("it cannot be decoded (its header is damaged)") from None
        self._slack = SLACK[container] / 1000
        self.size = self._image.size
        check_size(*self.size)
        self._count = int(getattr(self._image, "n_frames", 1))
        # a picture for those who show no more
        self._first = 1 if self._image.info.get("default_image") else 0
        if self._count - self._first < least:
            raise StillError
        check_count(self._count - self._first)

    def frames(self) -> Iterator[Shown[Image.Image]]:
        """Each frame in turn; the first begins at 0."""
        start = Fraction(0)
        for number in range(self._first, self._count):
            self._image.seek(number)
            self._image.load()
            if self._image.size != self.size:
                raise UnfitFileError("its frames change their size")
            duration = self._image.info.get("duration", 0)
            stop = start + Fraction(duration if duration > HURRIED else INSTEAD) / 1000
            check_length(float(stop))
            yield Shown(self._image.copy(), start, stop, self._slack)
            start = stop

    def square(self, picture: Image.Image, side: int) -> Pixels:
        """The centre of a frame, on white: uint8 (side, side, 3)."""
        return centre_square(picture, side)
