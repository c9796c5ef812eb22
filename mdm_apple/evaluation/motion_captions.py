"""The captions that a model of `--data motion` is tested with.

A quarter are pairs of object and motion that training never saw. The others were trained, each
motion as often as any other, give or take one. The list follows from names alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from mdm_apple.data.motion.held_out import held_out
from mdm_apple.data.motion.objects import OBJECTS
from mdm_apple.data.motion.poses import MOTIONS
from mdm_apple.data.scenes.held_out import hashed


@dataclass(frozen=True)
class AskedClip:
    """A caption of the test. held_out: whether training never sees this motion of this object."""

    thing: str
    motion: str
    held_out: bool

    @property
    def caption(self) -> str:
        return f"{self.thing} {self.motion}"

    @property
    def spins(self) -> bool:
        return self.motion.startswith("spinning")


def every_pair(objects: int) -> list[AskedClip]:
    """All pairs of the first `objects` objects with every motion."""
    missed = held_out(OBJECTS[:objects], tuple(MOTIONS))
    return [
        AskedClip(thing, motion, (thing, motion) in missed)
        for thing in OBJECTS[:objects]
        for motion in MOTIONS
    ]


def asked_clips(count: int, objects: int = len(OBJECTS)) -> list[AskedClip]:
    """The first `count` captions of the test, or all there are."""
    order = sorted(every_pair(objects), key=lambda pair: hashed("motion test", pair.caption))
    unseen = [pair for pair in order if pair.held_out][: max(1, count // 4)]
    by_motion = [[p for p in order if p.motion == m and not p.held_out] for m in MOTIONS]
    longest = max(map(len, by_motion))
    in_turn = [some[k] for k in range(longest) for some in by_motion if k < len(some)]
    return unseen + in_turn[: max(0, count - len(unseen))]
