"""Pooling and resampling of the spatial axes.

Each function is the MIL operation of its name and takes the operation's parameters by name.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdm_apple.config.types import Ints

from .ops_linear import pad_spatial, padding


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value of each window of x (B, C, *size); padding never wins."""
    strides = strides or (1,) * len(kernel_sizes)
    pads = padding(pad_type, pad, tuple(x.shape[2:]), kernel_sizes, strides)
    extra = _ceil_extra(x, kernel_sizes, strides, pads) if ceil_mode else (0,) * len(pads)
    pads = tuple((b, a + e) for (b, a), e in zip(pads, extra, strict=True))
    if any(map(any, pads)):
        x = pad_spatial(x, pads, -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return pool(x, kernel_sizes, strides)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window; padded zeros count unless excluded.

    Positions beyond the padding that only `ceil_mode` adds never count, as in PyTorch.
    """
    strides = strides or (1,) * len(kernel_sizes)
    pads = padding(pad_type, pad, tuple(x.shape[2:]), kernel_sizes, strides)
    extra = _ceil_extra(x, kernel_sizes, strides, pads) if ceil_mode else (0,) * len(pads)
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    counted = pad_spatial(counted, pads, 0.0 if exclude_padding_from_average else 1.0)
    if any(map(any, pads)) or any(extra):
        beyond = tuple((0, e) for e in extra)
        counted = pad_spatial(counted, beyond, 0.0)
        x = pad_spatial(pad_spatial(x, pads, 0.0), beyond, 0.0)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    mean = pool(x, kernel_sizes, strides)
    if not exclude_padding_from_average and not any(extra):
        return mean
    return mean / pool(counted, kernel_sizes, strides)


def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Root of the sum of squares of each window."""
    mean = avg_pool(x * x, kernel_sizes, pad_type, strides, pad, False, ceil_mode)
    return (mean * math.prod(kernel_sizes)).sqrt()


def _ceil_extra(
    x: Tensor, kernel: Ints, strides: Ints, pads: tuple[tuple[int, int], ...]
) -> tuple[int, ...]:
    """Positions to add at the end of each axis, so that the last window is whole.

    A last window that would start beyond the data and its leading padding is dropped.
    """
    extra: list[int] = []
    for n, k, s, (before, after) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        count = -(-(n + before + after - k) // s) + 1
        if (count - 1) * s >= n + before and before + after > 0:
            count -= 1
        extra.append(max(0, (count - 1) * s + k - (n + before + after)))
    return tuple(extra)


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """Repeat pixels of x (..., H, W); fractional factors take the pixel below the position."""
    height, width = (float(scale_factor_height), float(scale_factor_width))
    if x.ndim == 4 and height == width and height.is_integer():
        return F.interpolate(x, scale_factor=height, mode="nearest")
    for axis, factor in ((-2, height), (-1, width)):
        size = math.floor(x.shape[axis] * factor)
        at = (torch.arange(size, device=x.device) / factor).floor().long()
        x = x.index_select(axis, at.clamp(max=x.shape[axis] - 1))
    return x


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Nearest pixel at positions i * H_in / H_out, rounded down."""
    for axis, size in ((-2, target_size_height), (-1, target_size_width)):
        at = torch.arange(size, device=x.device) * x.shape[axis] // size
        x = x.index_select(axis, at)
    return x


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Linear interpolation of x (..., H, W) to floor(H * factor), at the ratio of the two sizes."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    height = math.floor(x.shape[-2] * scale_factor_height)
    width = math.floor(x.shape[-1] * scale_factor_width)
    return resize_bilinear(x, height, width, mode)


def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Linear interpolation of x (..., H, W) on the grid that `sampling_mode` names."""
    for axis, size in ((x.ndim - 2, target_size_height), (x.ndim - 1, target_size_width)):
        x = _interpolate(x, axis, size, sampling_mode)
    return x


def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last `resized_dims` axes to the end of `shape`; 0 keeps a size."""
    for k in range(1, resized_dims + 1):
        axis = x.ndim - k
        size = shape[-k] or x.shape[axis]
        if interpolation_mode == "NEAREST_NEIGHBOR":
            at = _grid(x.shape[axis], size, sampling_mode, x.device)
            at = at.floor() if sampling_mode == "DEFAULT" else (at - 0.5).ceil()
            x = x.index_select(axis, at.long())
        elif interpolation_mode == "LINEAR":
            x = _interpolate(x, axis, size, sampling_mode)
        else:
            raise ValueError(f"unknown interpolation_mode {interpolation_mode!r}")
    return x


def _grid(size: int, out: int, mode: str, device: torch.device) -> Tensor:
    """Positions of `out` samples on an axis of `size` values, by MIL's resize_bilinear."""
    steps = torch.arange(out, dtype=torch.float64, device=device)
    if mode == "ALIGN_CORNERS" and out == 1:
        at = steps + (size - 1) / 2
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        at = steps * ((size - 1) / max(out - 1, 1))
    elif mode == "DEFAULT":
        at = steps * (size / out)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / out
        at = (steps + 0.5) * delta
    elif mode == "UNALIGN_CORNERS":
        at = (steps + 0.5) * (size / out) - 0.5
    else:
        raise ValueError(f"unknown sampling_mode {mode!r}")
    return at.clamp(0, size - 1)


def _interpolate(x: Tensor, axis: int, out: int, mode: str) -> Tensor:
    size = x.shape[axis]
    at = _grid(size, out, mode, x.device)
    below = at.floor().long()
    above = (below + 1).clamp(max=size - 1)
    along = [-1 if i == axis else 1 for i in range(x.ndim)]
    share = (at - below).to(x.dtype).reshape(along)
    low, high = x.index_select(axis, below), x.index_select(axis, above)
    return low + (high - low) * share
