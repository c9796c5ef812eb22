"""The one documented stream of noise, which gives a seed the same picture in every runtime.

Level k, counted from the innermost = 0, of seed s reads
`numpy.random.RandomState([s, k]).standard_normal` in (C, H, W) order, float64 rounded to float32:
the initial noise first, then one draw per step. No level touches another's stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.ranges import in_range
from mdm_apple.errors import MdmError

CHANNELS = 3
MAX_SEED = 2**32 - 1


class NoiseStream:
    """Draws for one picture.

    Args:
        seed: 0 to 2**32 - 1.
        sides: pixels of each level, highest first; a run that stops early names fewer levels.
    """

    def __init__(self, seed: int, sides: Sequence[int]) -> None:
        in_range("seed", seed, 0, MAX_SEED, error=MdmError)
        levels = len(sides)
        self._shapes = [(CHANNELS, side, side) for side in sides]
        self._states = [np.random.RandomState([seed, levels - 1 - i]) for i in range(levels)]

    def draw(self) -> list[NDArray[np.float32]]:
        """The next normals of every level, highest first: float32 (3, side, side) each."""
        return [
            state.standard_normal(shape).astype(np.float32)
            for state, shape in zip(self._states, self._shapes, strict=True)
        ]


class MixedNoise:
    """Draws that lie between those of two seeds, on the arc that keeps their variance.

    Args:
        share: 0 gives the draws of `one`, 1 those of `other`, both to the bit.
    """

    def __init__(self, one: NoiseStream, other: NoiseStream, share: float) -> None:
        in_range("share", share, 0, 1, error=MdmError)
        self._one, self._other, self._share = one, other, share

    def draw(self) -> list[NDArray[np.float32]]:
        """As `NoiseStream.draw`."""
        one, other = self._one.draw(), self._other.draw()
        if self._share in (0, 1):
            return other if self._share else one
        angle = self._share * math.pi / 2
        near, far = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        return [(near * a + far * b).astype(np.float32) for a, b in zip(one, other, strict=True)]


def draw_batch(streams: Sequence[NoiseStream | MixedNoise]) -> list[NDArray[np.float32]]:
    """One draw for several pictures, stacked per level: float32 (B, 3, side, side) each."""
    return [np.stack(level) for level in zip(*(s.draw() for s in streams), strict=True)]
