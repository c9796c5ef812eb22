"""A clip as the contents of a file, of the kind that the suffix of its name says."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.clip_file.animation import MAX_GIF_FPS, apng, gif, webp
from mdm_apple.clip_file.movie import MOVIES, movie
from mdm_apple.clip_file.timing import check_fps
from mdm_apple.config.types import Pixels
from mdm_apple.errors import MdmError, require_installed

LOSSLESS = (".png", ".webp")
CLIPS = (*LOSSLESS, ".gif", *MOVIES)


def clip_bytes(frames: Pixels, fps: float, suffix: str, text: str | None = None) -> bytes:
    """The contents of a clip's file.

    Args:
        frames: (N, H, W, 3). suffix: one of CLIPS. text: kept inside; see `embedded_text`.

    Raises MdmError, and MissingPackageError for a movie without PyAV.
    """
    check_clip_name(Path(suffix), fps)
    if suffix in MOVIES:
        return movie(frames, fps, suffix, text)
    return {".png": apng, ".webp": webp, ".gif": gif}[suffix](frames, fps, text)


def check_clip_name(path: Path, fps: float) -> None:
    """Refuse, before any work, what cannot be written under this name. Raises MdmError."""
    suffix = path.suffix.lower() or path.name.lower()
    if suffix not in CLIPS:
        raise MdmError(
            f"out: clips are written as {', '.join(CLIPS[:-1])} or {CLIPS[-1]}, got {path}."
        )
    check_fps(fps)
    if suffix == ".gif" and fps > MAX_GIF_FPS:
        raise MdmError(
            f"fps: a GIF shows at most {MAX_GIF_FPS} frames a second, got {fps:g}; choose .webp."
        )
    if suffix in MOVIES:
        require_installed("av")
