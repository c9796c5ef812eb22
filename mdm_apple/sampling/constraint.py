"""What is known of a picture or clip before it is made, level by level, and how sampling keeps it.

A constraint acts on the clean estimate of every step and, for pictures, on the state before it. A
level either has known pixels (`Held`), or squares of pixels with known averages (`Averages`).
The noise of a known pixel is the level's own first draw, so nothing is drawn that would not be
drawn without it, and every backend makes the same picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdm_apple.config.types import Array, Images
from mdm_apple.diffusion.arithmetic import add_noise
from mdm_apple.diffusion.ops import NumpyOps, Ops

SHIFTS = 4  # after these, what pixels at an end of the range still lack is shared out


@dataclass(frozen=True)
class Held:
    """Known pixels of a level.

    free: 1 where nothing is known, 0 where a pixel is, and between where a square of pixels above
    is known in part. known: the pixels, weighted by what `free` leaves. fixed: 1 where the state is
    replaced as well, else 0; None: nowhere. noise: of these pixels; comes with `fixed`. rings: of
    pixels around the fixed ones, nearest first; see `rings_around`.
    """

    free: Array
    known: Array
    fixed: Array | None = None
    noise: Array | None = None
    rings: tuple[Array, ...] = ()

    def estimate(self, x0: Array, ops: Ops) -> Array:
        """The clean estimate, with what is known in place of what was estimated.

        What the estimate lacked of the fixed pixels is added to those around them as well, less
        with every ring: else the exact pixels would end at a seam.
        """
        if self.rings:
            lacks = (self.known - x0) * self.fixed
            for k, weights in enumerate(self.rings):
                ring = ops.smooth(lacks) * weights
                lacks = lacks + ring
                x0 = x0 + ring * (1 - (k + 1) / (len(self.rings) + 1))
        return x0 * self.free + self.known

    def state(self, x_t: Array, alpha_bar: float) -> Array:
        """The state, with the known pixels at its noise."""
        if self.fixed is None or self.noise is None:
            return x_t
        given = add_noise(self.known, self.noise, alpha_bar)
        return x_t * (1 - self.fixed) + given * self.fixed

    def on(self, image: Callable[[Images], Any], signal: float, noise: Array) -> Held:
        """This NumPy constraint as arrays of a backend, divided by the level's `signal`."""
        free, known = image(self.free), image(self.known / np.float32(signal))
        if self.fixed is None:
            return Held(free, known)
        return Held(free, known, image(self.fixed), noise, tuple(map(image, self.rings)))

    def finished(self, picture: Images) -> Images:
        """The finished pixels (NumPy), with the known ones exactly as given."""
        if self.fixed is None:
            return picture
        return np.where(self.fixed == 1, np.clip(self.known, -1, 1), picture)


def rings_around(fixed: Images, count: int) -> tuple[Images, ...]:
    """The first `count` rings of pixels around fixed ones: weights that extend values outwards.

    `ops.smooth(values) * weights` of values that are 0 beyond the pixels known so far gives the
    pixels of the next ring the average of their known neighbours.

    Args:
        fixed: (1, 1, side, side), 1 or 0.
    """
    rings, filled = list[Images](), fixed
    for _ in range(count):
        near = NumpyOps().smooth(filled)
        ring = (near > 0) & (filled == 0)
        if not ring.any():
            break
        rings.append((ring / np.where(near > 0, near, 1)).astype(np.float32))
        filled = filled + ring.astype(np.float32)
    return tuple(rings)


@dataclass(frozen=True)
class Averages:
    """Known averages of the squares of a level: `factor` x `factor` pixels each.

    averages: in [-1, 1]. headroom: what the pixels of a square that is wholly white have above 1.
    signal: what the level's image is divided by.
    """

    averages: Array
    headroom: Array
    factor: int
    signal: float = 1.0

    def estimate(self, x0: Array, ops: Ops) -> Array:
        """The clean estimate moved into [-1, 1] and to the known averages.

        First a square is shifted and clipped, which keeps its details; then what pixels at an end
        of the range still lack is taken from the room that the others have. That part is exact.
        """
        x = ops.clip(x0 * self.signal, -1.0, 1.0)
        for _ in range(SHIFTS):
            gap = self.averages - ops.avg_pool(x, self.factor)
            x = ops.clip(x + ops.repeat(gap, self.factor), -1.0, 1.0)
        now = ops.avg_pool(x, self.factor)
        up = ops.clip((self.averages - now) / ops.clip(1 - now, 1e-6, None), 0.0, 1.0)
        down = ops.clip((now - self.averages) / ops.clip(1 + now, 1e-6, None), 0.0, 1.0)
        up, down = ops.repeat(up, self.factor), ops.repeat(down, self.factor)
        x = x + up * (1 - x) - down * (1 + x)
        return (x + ops.repeat(self.headroom, self.factor)) / self.signal

    def state(self, x_t: Array, alpha_bar: float) -> Array:
        """The state as it is."""
        return x_t

    def on(self, image: Callable[[Images], Any], signal: float, noise: Array) -> Averages:
        """As for `Held`."""
        return Averages(image(self.averages), image(self.headroom), self.factor, signal)

    def finished(self, picture: Images) -> Images:
        """The finished pixels (NumPy), with the known averages."""
        return np.clip(self.estimate(picture, NumpyOps()), -1, 1)


Known = Held | Averages  # of one level
