"""What a manifest says of a model of clips."""

from __future__ import annotations

import math
from itertools import pairwise

from mdm_apple.config.model import MOST_FPS, ModelConfig
from mdm_apple.diffusion.canvas import frame_side

from ..errors import ConversionError
from ..limits import MOST_FRAMES
from .manifest import Manifest, VideoInfo

HIGHEST_FPS = int(MOST_FPS)  # as in manifest.schema.json


def clip_of(config: ModelConfig) -> VideoInfo | None:
    """The entry of a model of clips that `check_clip` accepts; None for pictures."""
    if config.frames == 1:
        return None
    frames = tuple(count for count, _ in config.clip_shapes)
    return VideoInfo(frames, int(config.fps), key_frame=0)


def check_clip(config: ModelConfig) -> None:
    """Raise ConversionError for clips that a manifest cannot describe."""
    if config.frames == 1:
        return
    if config.frames > MOST_FRAMES:
        raise ConversionError(
            f"model: a bundle holds clips of up to {MOST_FRAMES} frames, but these have "
            f"{config.frames}; convert a model of shorter clips."
        )
    fps = config.fps
    if fps != int(fps) or not 1 <= fps <= HIGHEST_FPS:
        raise ConversionError(
            f"video.fps: a bundle takes a whole number from 1 to {HIGHEST_FPS}, got {fps:g}; "
            "change it in config.json."
        )


def frames_and_sides(manifest: Manifest) -> list[tuple[int, int]]:
    """Frames of each level and the pixels on a side of one; a picture is one frame."""
    sides = [level.side for level in manifest.levels]
    frames = manifest.video.frames if manifest.video else (1,) * len(sides)
    return [(n, frame_side(side, n)) for n, side in zip(frames, sides, strict=True)]


def fault_of_clip(manifest: Manifest) -> str | None:
    """What is wrong with `video` beyond the schema, as the end of a sentence; None if nothing."""
    video, sides = manifest.video, [level.side for level in manifest.levels]
    if video is None:
        return None
    frames = video.frames
    if len(frames) != len(sides):
        return f"has {len(frames)} numbers of frames for {len(sides)} levels"
    for side, count in zip(sides, frames, strict=True):
        grid = math.isqrt(count)
        if grid * grid != count or side % grid:
            return f"has {count} frames at {side} pixels, which do not fill a square"
    if any(outer < inner for outer, inner in pairwise(frames)):
        return f"has more frames further in, got {frames}"
    if video.key_frame >= frames[0]:
        return f"shows frame {video.key_frame} of {frames[0]}"
    return None
