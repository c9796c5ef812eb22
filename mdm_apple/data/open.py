"""Captioned pictures by name: the emoji from a package, scenes of them, or the user's own folder.

Input: a name, a folder or an object. Output: a `Dataset` of square RGB pictures, or of clips, whose
frames tile a square.
"""

from __future__ import annotations

from pathlib import Path

from mdm_apple.config.model import MAX_SIDE
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import Background
from mdm_apple.data import folder, twemoji
from mdm_apple.data.clips.decode import Wanted
from mdm_apple.data.clips.open_clips import (
    CLIPS_PER_FILE,
    MAX_CLIPS_PER_FILE,
    Progress,
    no_progress,
    open_clips,
)
from mdm_apple.data.dataset import DataError, Dataset
from mdm_apple.data.from_object import PictureSource, dataset_of
from mdm_apple.data.motion.open_motion import open_motion
from mdm_apple.data.scenes.open_scenes import open_scenes

TWEMOJI, SCENES, MOTION = "twemoji", "scenes", "motion"


def open_dataset(
    spec: str | PictureSource,
    side: int,
    *,
    background: Background = "white",
    skin_tones: bool = False,
    skip_bad: bool = False,
    frames: int = 1,
    fps: float = 8,
    clips_per_file: int | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Open captioned pictures; each is rendered or decoded on first use, but clips are now.

    Args:
        spec: "twemoji", "scenes" (see `scenes.open_scenes`), "motion[:OBJECTS[:VARIANTS]]" (see
            `motion.open_motion`), or a folder (see `folder.open_folder`, `clips.open_clips`;
            "./twemoji" for a folder of that name), or an object (see
            `from_object.PictureSource`).
        side: pixels of the square pictures, or of the square that a clip's frames tile.
        background: behind emoji: white, or one plain pale color per picture. Twemoji only.
        skin_tones: whether to include emoji with a skin tone (3,953 pictures instead of 1,918).
            Twemoji only.
        skip_bad: leave out the pictures that are known here to be unusable. Folders only.
        frames: of a clip; 1 for pictures, or for the first frames of motion. fps: frames a second,
            for a folder of clips.
        clips_per_file: at most so many of each file of a folder; None for CLIPS_PER_FILE.
        progress: called with the files of clips that are decoded, and their total.

    Raises:
        DataError: no such folder, no usable picture, or unusable files.
        MissingPackageError: "twemoji", "scenes" or "motion" without the `data` extra, a folder of
            movies without `video`.
    """
    in_range("side", side, 1, MAX_SIDE, what="pixels", error=DataError)
    if background not in ("white", "color"):
        raise DataError(f"background: expected white or color, got {background}.")
    moving = _is_motion(spec)
    named = not names_folder(spec)
    if skip_bad and named:
        raise DataError("skip_bad: applies to a folder of pictures; leave it out for others.")
    if named and frames > 1 and not moving:
        raise DataError(
            f"data: a model of clips cannot learn from {spec}; give motion or a folder of clips."
        )
    if clips_per_file is not None and (named or frames == 1):
        raise DataError("clips_per_file: applies to a folder of clips; leave it out for others.")
    if spec == TWEMOJI:
        return twemoji.open_twemoji(side, color=background == "color", skin_tones=skin_tones)
    if background != "white" or skin_tones:
        raise DataError(
            "background, skin_tones: apply to twemoji only; leave them out for other pictures."
        )
    if spec == SCENES:
        return open_scenes(side)
    if moving:
        return open_motion(side, frames, **motion_counts(str(spec)))
    if not isinstance(spec, str):
        return dataset_of(spec, side)
    if frames == 1:
        return folder.open_folder(Path(spec), side, skip_bad=skip_bad)
    wanted = wanted_clips(side, frames, fps, clips_per_file)
    return open_clips(Path(spec), wanted, skip_bad=skip_bad, progress=progress)


def names_folder(spec: str | PictureSource | None) -> bool:
    """Whether captioned pictures or clips are files of a folder, which may be bad."""
    return isinstance(spec, str) and spec not in (TWEMOJI, SCENES) and not _is_motion(spec)


def _is_motion(spec: str | PictureSource) -> bool:
    return isinstance(spec, str) and spec.partition(":")[0] == MOTION


def wanted_clips(side: int, frames: int, fps: float, clips_per_file: int | None) -> Wanted:
    """The clips that a model takes from files; see `open_dataset`. Raises DataError."""
    most = CLIPS_PER_FILE if clips_per_file is None else clips_per_file
    in_range("clips_per_file", most, 1, MAX_CLIPS_PER_FILE, error=DataError)
    return Wanted(side, frames, fps, most)


def motion_counts(spec: str) -> dict[str, int]:
    """Objects and variants of "motion:8:4", where they are given. Raises DataError."""
    given = spec.split(":")[1:]
    if len(given) > 2 or not all(part.isascii() and part.isdigit() for part in given):
        raise DataError(
            f"data: expected motion[:OBJECTS[:VARIANTS]], such as motion:8:4, got {spec}."
        )
    return dict(zip(("objects", "variants"), map(int, given), strict=False))
