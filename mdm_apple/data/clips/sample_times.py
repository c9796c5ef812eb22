"""Which frames of a file a clip shows: the last that has begun at start, start + 1 / fps, ...

Input: decoded frames with their times. Output: one of them for each time that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from mdm_apple.data.clips.limits import UnfitFileError

T = TypeVar("T")


@dataclass(frozen=True)
class Shown(Generic[T]):
    """A frame, when it begins and when it ends, in seconds.

    slack: half a tick of its file's clock, within which two times are equal: files of WebM round
    a third of a second to 0.333.
    """

    picture: T
    start: Fraction
    stop: Fraction
    slack: Fraction = Fraction(0)


def sampled(frames: Iterable[Shown[T]], fps: float, most: int) -> Iterator[T]:
    """The picture that is shown at each time, in turn; up to `most`, or as many as there are.

    No frame is asked for beyond those. The first one begins at the start, whatever its time is; one
    lasts until the next, and the last until its own end. Raises UnfitFileError if times run
    backwards.
    """
    step = 1 / Fraction(fps)
    asked: Fraction | None = None
    last: Shown[T] | None = None
    for frame in frames:
        if last is None or asked is None:
            asked = frame.start
        elif frame.start < last.start:
            raise UnfitFileError("the times of its frames run backwards")
        else:
            while asked + frame.slack < frame.start:
                yield last.picture
                most, asked = most - 1, asked + step
                if most < 1:
                    return
        last = frame
    if last is None or asked is None:
        return
    while most > 0 and asked + last.slack < last.stop:
        yield last.picture
        most, asked = most - 1, asked + step
