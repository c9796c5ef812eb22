"""Bytes of pictures as the numbers that a network is trained on."""

from __future__ import annotations

import numpy as np

from mdm_apple.config.types import Images


def training_range(pixels: Images, channels: int, white_headroom: float) -> Images:
    """Pixels of 0 to 255 become [-1, 1], and pure white 1 + white_headroom; the array is changed.

    Args:
        pixels: float32. channels: the axis of the three colors.
    """
    white = pixels.min(channels, keepdims=True) == 255
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    pixels += np.float32(white_headroom) * white
    return pixels
