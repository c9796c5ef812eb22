"""How close two arrays are, in decibels, computed in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Closeness:
    """psnr: 20 log10(max|reference| / RMSE); snr: the same with the reference's RMS as the peak.

    Infinite for equal arrays, -infinite if the candidate has a value that is not finite.
    """

    psnr: float
    snr: float


def closeness(reference: NDArray[Any], candidate: NDArray[Any]) -> Closeness:
    """Compare a candidate with a reference of the same shape."""
    if reference.shape != candidate.shape:
        raise ValueError(f"candidate: expected {reference.shape}, got {candidate.shape}.")
    wanted, got = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(got).all():
        return Closeness(-math.inf, -math.inf)
    rmse = math.sqrt(float(np.square(wanted - got).mean()))
    rms = math.sqrt(float(np.square(wanted).mean()))
    return Closeness(decibels(float(np.abs(wanted).max()), rmse), decibels(rms, rmse))


def picture_psnr(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """PSNR of pictures in [-1, 1] before rounding to bytes, so the peak is 2."""
    rmse = math.sqrt(
        float(np.square(reference.astype(np.float64) - candidate.astype(np.float64)).mean())
    )
    return decibels(2.0, rmse)


def decibels(peak: float, rmse: float) -> float:
    """20 log10(peak / rmse)."""
    if rmse == 0:
        return math.inf
    return 20 * math.log10(peak / rmse) if peak > 0 else -math.inf
