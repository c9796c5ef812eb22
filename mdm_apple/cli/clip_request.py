"""What `mdm sample` is asked about clips: frames a second, given frames, and what --like brings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mdm_apple.config.model import ModelConfig
from mdm_apple.errors import MdmError
from mdm_apple.given_pictures.frames import FramePicture, frame_of_clip, given_frames
from mdm_apple.sampling.given_frames import NOTHING_GIVEN, GivenFrames, sha256_of
from mdm_apple.sampling.inner_model import AskedLevel, level_of_side, require_clip, side_of_level
from mdm_apple.sampling.pictures import Recipe


@dataclass(frozen=True)
class Like:
    """The file of --like, and the recipe in it."""

    path: Path
    recipe: Recipe


@dataclass(frozen=True)
class ClipRequest:
    """Options for clips; None: not given."""

    frames: int | None
    fps: float | None
    sheet: Path | None
    first_frame: Path | None
    last_frame: Path | None


@dataclass(frozen=True)
class ClipTask:
    """How to make clips. fps: None where single pictures are made."""

    given: GivenFrames = NOTHING_GIVEN
    fps: float | None = None


def stop_side(
    config: ModelConfig, model: str, asked: AskedLevel | None, like: Like | None
) -> int | None:
    """The side at which to stop. Raises MdmError, also for a clip that the model cannot make."""
    if asked is not None or like is None:
        return side_of_level(config, asked)
    frames, side = like.recipe.frames, like.recipe.stop_at
    known = side is None or side in config.sides
    makes = config.clip_shapes[level_of_side(config, side)][0] if known else config.frames
    if frames is not None and frames != makes:
        what = "pictures" if config.frames == 1 else f"clips of {config.frames} frames"
        raise MdmError(
            f"like: {like.path} is a clip of {frames} frames, and {model} makes {what}; name the "
            "model of the clip with --model."
        )
    return side


def clip_task(
    config: ModelConfig, stop_at: int | None, asked: ClipRequest, like: Like | None
) -> tuple[ClipTask, list[str]]:
    """What to make, and remarks. Raises MdmError for what the model cannot do."""
    require_clip(
        config,
        stop_at,
        {
            "frames": asked.frames,
            "fps": asked.fps,
            "sheet": asked.sheet,
            "first-frame": asked.first_frame,
            "last-frame": asked.last_frame,
        },
    )
    frames, _ = config.clip_shapes[level_of_side(config, stop_at)]
    if frames == 1:
        return ClipTask(), []
    if asked.frames not in (None, frames):
        raise MdmError(
            f"frames: this model makes clips of {frames} frames, got {asked.frames}; leave out "
            "--frames."
        )
    first, last = asked.first_frame, asked.last_frame
    given = given_frames(
        config, stop_at, first or _kept(like, "first"), last or _kept(like, "last")
    )
    fps = asked.fps or (like and like.recipe.fps) or config.fps
    return ClipTask(given, fps), _other_frames(given, like)


def _kept(like: Like | None, which: str) -> FramePicture | None:
    """A given frame of the clip of --like, from its file. Raises MdmError if it is lost."""
    if like is None:
        return None
    recipe = like.recipe
    digest = recipe.first_frame if which == "first" else recipe.last_frame
    if digest is None:
        return None
    frame = frame_of_clip(like.path, last=which == "last")
    if sha256_of(frame) != digest:
        raise MdmError(
            f"like: {like.path} was made with --{which}-frame, and does not hold that picture "
            f"exactly; give it again with --{which}-frame."
        )
    return Image.fromarray(frame)


def _other_frames(given: GivenFrames, like: Like | None) -> list[str]:
    if like is None:
        return []
    pairs = (
        ("first", like.recipe.first_frame, given.first),
        ("last", like.recipe.last_frame, given.last),
    )
    return [
        f"{which}-frame: {like.path} was made with another picture; expect a different clip."
        for which, digest, frame in pairs
        if digest is not None and sha256_of(frame) != digest
    ]
