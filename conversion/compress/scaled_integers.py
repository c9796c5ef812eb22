"""Weights as whole numbers times a scale: int8 per output channel, int4 per block of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .histogram import Halves
from .settings import INT4_BLOCK

LARGEST = {8: 127, 4: 7}
LEAST_SCALE = np.float16(2**-24)  # the least number above zero


@dataclass(frozen=True)
class ScaledIntegers:
    """numbers: in the weight's shape. scale: one per block, with as many axes."""

    numbers: NDArray[np.int8]
    scale: Halves

    def dense(self) -> Halves:
        """The weight they encode."""
        return (self.numbers * _spread(self.scale, self.numbers.shape)).astype(np.float16)


def scaled_integers(weight: Halves, out_axis: int, in_axis: int, bits: int) -> ScaledIntegers:
    """The nearest numbers of 8 or 4 bits, with the scales that the largest numbers ask for."""
    blocks = [1] * weight.ndim
    blocks[out_axis] = weight.shape[out_axis]
    if bits == 4:
        blocks[in_axis] = weight.shape[in_axis] // INT4_BLOCK
    split = [n for b, size in zip(blocks, weight.shape, strict=True) for n in (b, size // b)]
    inside = tuple(range(1, 2 * weight.ndim, 2))
    largest = np.abs(weight).reshape(split).max(inside).astype(np.float32)
    scale = np.maximum((largest / LARGEST[bits]).astype(np.float16), LEAST_SCALE)
    exceeds = scale.astype(np.float32) * LARGEST[bits] > np.finfo(np.float16).max
    scale = np.where(exceeds, np.nextafter(scale, np.float16(0)), scale)
    ratio = weight.astype(np.float32) / _spread(scale, weight.shape)
    numbers = np.clip(np.rint(ratio), -LARGEST[bits], LARGEST[bits])
    return ScaledIntegers(numbers.astype(np.int8), scale)


def _spread(scale: Halves, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The scale of each number."""
    out = scale.astype(np.float32)
    for axis, size in enumerate(shape):
        out = np.repeat(out, size // scale.shape[axis], axis)
    return out
