"""How long the frames of a clip are shown, in the units of a file."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from mdm_apple.config.model import LEAST_FPS, MOST_FPS
from mdm_apple.config.ranges import in_range


def check_fps(fps: float | None) -> None:
    """Refuse a number of frames a second that files cannot hold. Raises ConfigError."""
    in_range("fps", fps, LEAST_FPS, MOST_FPS, what="frames a second")


def exact(fps: float) -> Fraction:
    """Frames a second as a fraction whose two numbers fit in 16 bits."""
    return Fraction(fps).limit_denominator(250)


def durations(count: int, fps: float, units: int) -> list[int]:
    """Whole units of 1 / `units` s for each frame: none drifts from its time by more than half."""
    times = [round(k * units / exact(fps)) for k in range(count + 1)]
    return [after - before for before, after in pairwise(times)]


def repeats(seconds: float, fps: float) -> int:
    """How many frames at `fps` one frame of a file stands for: equal neighbours become one."""
    return max(1, round(min(seconds * fps, 1 << 30)))
