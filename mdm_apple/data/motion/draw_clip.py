"""Draws one frame of a moving drawing on white."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from mdm_apple.config.types import Pixels
from mdm_apple.data.motion.poses import DIGITS, Pose

FINER = 2  # pixels per pixel, along each side, before the reduction


def draw_frame(drawing: Image.Image, pose: Pose, side: int) -> Pixels:
    """uint8 (side, side, 3).

    Args:
        drawing: RGBA and square, at least FINER x side pixels wide, so that nothing is enlarged
            where its size is below 1.
    """
    place, scale = FINER * side, pose.size * FINER * side / drawing.width
    turn = math.radians(pose.angle)
    cosine, sine = round(math.cos(turn), DIGITS) / scale, round(math.sin(turn), DIGITS) / scale
    x, y = place * (0.5 + pose.x), place * (0.5 + pose.y)
    half = drawing.width / 2
    # from a pixel of the frame to one of the drawing
    there = (
        *(cosine, sine, half - cosine * x - sine * y),
        *(-sine, cosine, half + sine * x - cosine * y),
    )
    # with colors multiplied by alpha, what is transparent lends no color to an edge
    moved = drawing.convert("RGBa").transform(
        (place, place), Image.Transform.AFFINE, there, Image.Resampling.BILINEAR
    )
    reduced = np.asarray(moved.reduce(FINER))
    return reduced[..., :3] + (255 - reduced[..., 3:])
