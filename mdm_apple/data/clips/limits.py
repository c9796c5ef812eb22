"""What a file of clips may ask of this machine, and how it is refused."""

from __future__ import annotations

MAX_SIDE = 8192  # pixels
MAX_PIXELS = 89_000_000  # of a frame
MAX_SECONDS = 600  # that a file lasts
MAX_FRAMES = 20_000
CPU_SECONDS = 20  # to decode a file
MEMORY = 1 << 30  # bytes of address space of a process that decodes


REPAIR = "repair or remove it"
SHRINK = "make a smaller copy"


class UnfitFileError(Exception):
    """A file that is not decoded: why, and what to do, without the name of the file."""

    def __init__(self, reason: str, remedy: str = REPAIR) -> None:
        super().__init__(reason)
        self.remedy = remedy


class StillError(UnfitFileError):
    """A picture where a clip was expected."""

    def __init__(self) -> None:
        super().__init__("a still picture, not a clip", "remove it")


def check_size(width: int, height: int) -> None:
    """Raises UnfitFileError for a frame of no pixels, or of too many."""
    if width < 1 or height < 1:
        raise UnfitFileError("its frames have no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise too_large()


def too_large() -> UnfitFileError:
    """The refusal of frames of too many pixels."""
    return UnfitFileError(
        f"its frames have more than {MAX_SIDE} pixels a side, or {MAX_PIXELS // 1_000_000} million",
        SHRINK,
    )


def check_length(seconds: float) -> None:
    """Raises UnfitFileError for a file that lasts too long."""
    if seconds > MAX_SECONDS:
        raise UnfitFileError(f"it lasts longer than {MAX_SECONDS // 60} minutes", "cut it")


def check_count(frames: int) -> None:
    """Raises UnfitFileError for too many frames."""
    if frames > MAX_FRAMES:
        raise UnfitFileError(f"it has more than {MAX_FRAMES} frames", "cut it")
