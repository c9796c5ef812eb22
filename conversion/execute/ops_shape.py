"""Operations that move values without changing them: reshaping, slicing, joining, gathering.

Each function is the MIL operation of its name and takes the operation's parameters by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdm_apple.config.types import Ints

Bools = tuple[bool, ...]
Scalar = int | float  # of the type that the program wrote


def shape(x: Tensor) -> Tensor:
    """The sizes of x, as a vector."""
    return torch.tensor(tuple(x.shape), dtype=torch.int64, device=x.device)


def non_zero(x: Tensor) -> Tensor:
    """The places (N, rank) of the values that are not zero."""
    return torch.nonzero(x)


def reshape(x: Tensor, shape: Ints) -> Tensor:
    """-1 is inferred; 0 takes the size of x at the same place from the right, or 1 if none."""
    lead = x.ndim - len(shape)
    sizes = [
        n or (int(x.shape[i + lead]) if 0 <= i + lead < x.ndim else 1) for i, n in enumerate(shape)
    ]
    return x.reshape(sizes)


def reshape_like(
    x: Tensor,
    ref_tensors: tuple[Tensor, ...],
    begins: tuple[int, ...],
    ends: tuple[int, ...],
    end_masks: tuple[bool, ...],
) -> Tensor:
    shape: list[int] = []
    for ref, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += list(ref.shape[begin:] if to_end else ref.shape[begin:end])
    return x.reshape(shape)


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Axes longer than 1 stay."""
    return x.squeeze() if axes is None else x.squeeze(axes)


def concat(values: tuple[Tensor, ...], axis: int, interleave: bool = False) -> Tensor:
    """Numbers without an axis, such as single sizes, become a vector."""
    if any(value.ndim == 0 for value in values):
        values = tuple(value.reshape(-1) for value in values)
    if interleave:
        return torch.stack(values, axis % values[0].ndim + 1).flatten(
            axis % values[0].ndim, axis % values[0].ndim + 1
        )
    return torch.cat(values, axis)


def stack(values: tuple[Tensor, ...], axis: int) -> Tensor:
    return torch.stack(values, axis)


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    if not num_splits or x.shape[axis] % num_splits:
        raise ValueError(f"{x.shape[axis]} cannot be split into {num_splits} equal parts")
    return torch.split(x, x.shape[axis] // num_splits, axis)


def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """NumPy slicing x[begin:end:stride]; masked ends are open, squeezed axes are indexed."""
    no = (False,) * x.ndim
    strides, opened, ended, squeezed = (
        stride or (1,) * x.ndim,
        begin_mask or no,
        end_mask or no,
        squeeze_mask or no,
    )
    dropped: list[int] = []
    for axis, size in enumerate(x.shape):
        if squeezed[axis]:
            x = x.narrow(axis, begin[axis] + size if begin[axis] < 0 else begin[axis], 1)
            dropped.append(axis)
            continue
        window = slice(
            None if opened[axis] else begin[axis],
            None if ended[axis] else end[axis],
            strides[axis],
        )
        chosen = range(*window.indices(size))
        if strides[axis] < 0:
            x = x.index_select(axis, torch.tensor(list(chosen), device=x.device))
        elif len(chosen) != size:
            x = x[(slice(None),) * axis + (slice(chosen.start, chosen.stop, chosen.step),)]
    for axis in reversed(dropped):
        x = x.squeeze(axis)
    return x


def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """x (B, C, H, W) without (before, after) rows and columns."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """`size` values from `begin` along each axis; -1 for all that remain."""
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        length = x.shape[axis]
        first = start + length if start < 0 else start
        x = x.narrow(axis, first, length - first if count == -1 else count)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """A copy of x with the window of `slice_by_index` replaced."""
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    window = slice_by_index(places, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    flat = x.reshape(-1).clone()
    flat[window.reshape(-1)] = update.expand(window.shape).reshape(-1)
    return flat.reshape(x.shape)


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: Scalar = 0) -> Tensor:
    """Pad the last len(pad) / 2 axes; pairs (before, after) run from the first of them."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    flat = [n for pair in reversed(pairs) for n in pair]
    if mode == "constant":
        return F.pad(x, flat, value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"unknown mode {mode!r}")
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            x = x.index_select(axis, _mirror(x.shape[axis], before, after, mode, x.device))
    return x


def _mirror(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    places = torch.arange(-before, size + after, device=device)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if max(before, after) > size - 1:
        raise ValueError(f"cannot reflect {max(before, after)} values of an axis of {size}")
    return (size - 1) - ((size - 1) - places.abs()).abs()


def tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside a band around the diagonal of the last two axes; -1 keeps that side whole."""
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


def fill(shape: Ints, value: Scalar = 0.0) -> Tensor:
    return torch.full(shape, value)


def fill_like(ref_tensor: Tensor, value: Scalar = 0.0) -> Tensor:
    return torch.full(ref_tensor.shape, value, device=ref_tensor.device)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Scalar = 1,
    off_value: Scalar = 0,
) -> Tensor:
    """A new axis of `one_hot_vector_size`, on where it equals the index."""
    rank = indices.ndim + 1
    places = torch.arange(one_hot_vector_size, device=indices.device)
    places = places.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
    on = indices.unsqueeze(axis) == places
    values = torch.tensor([off_value, on_value], device=indices.device)
    return torch.where(on, values[1], values[0])


def range_1d(start: Scalar, end: Scalar, step: Scalar) -> Tensor:
    return torch.arange(start, end, step)


def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of x along `axis` at `indices`; both share their first `batch_dims` axes.

    Negative indices count from the end (up to iOS 16; undefined later).
    """
    axis, batch_dims = axis % x.ndim, batch_dims % (indices.ndim + 1)
    at = torch.where(indices < 0, indices + x.shape[axis], indices)
    if batch_dims == 0:
        found = x.index_select(axis, at.reshape(-1))
        return found.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
    batch, middle, after = x.shape[:batch_dims], x.shape[batch_dims:axis], x.shape[axis + 1 :]
    rows = x.reshape(batch.numel(), middle.numel(), x.shape[axis], after.numel())
    places = at.reshape(batch.numel(), 1, -1, 1).expand(-1, rows.shape[1], -1, rows.shape[3])
    found = rows.gather(2, places)
    return found.reshape(batch + middle + indices.shape[batch_dims:] + after)


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    at = torch.where(indices < 0, indices + x.shape[axis], indices)
    shape = list(at.shape)
    shape[axis] = x.shape[axis]
    return x.expand(shape).gather(axis, at)


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """The last axis of `indices` holds coordinates into x, after `batch_dims` shared axes."""
    depth = indices.shape[-1]
    batch, inner = x.shape[:batch_dims], x.shape[batch_dims : batch_dims + depth]
    after = x.shape[batch_dims + depth :]
    flat = torch.zeros_like(indices[..., 0])
    for k, size in enumerate(inner):
        at = indices[..., k]
        flat = flat * size + torch.where(at < 0, at + size, at)
    rows = x.reshape(batch.numel(), inner.numel(), after.numel())
    places = flat.reshape(batch.numel(), -1, 1).expand(-1, -1, rows.shape[2])
    return rows.gather(1, places).reshape(indices.shape[:-1] + after)


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    at = torch.where(indices < 0, indices + data.shape[axis], indices)
    if mode == "update":
        return data.scatter(axis, at, updates)
    if mode == "sub":
        return data.scatter_reduce(axis, at, -updates, "sum")
    if mode == "div":
        return data.scatter_reduce(axis, at, 1 / updates, "prod")
    return data.scatter_reduce(axis, at, updates, _SCATTER[mode])


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Put slices of `updates` at `indices` (N,) along `axis`."""
    along = [-1 if i == axis % data.ndim else 1 for i in range(data.ndim)]
    return scatter_along_axis(
        data, indices.reshape(along).expand(updates.shape), updates, axis, mode
    )


def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    depth = indices.shape[-1]
    flat = torch.zeros_like(indices[..., 0])
    for k, size in enumerate(data.shape[:depth]):
        at = indices[..., k]
        flat = flat * size + torch.where(at < 0, at + size, at)
    rows = data.reshape(data.shape[:depth].numel(), -1)
    new = scatter(rows, flat.reshape(-1), updates.reshape(-1, rows.shape[1]), 0, mode)
    return new.reshape(data.shape)


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """(B, b b C, H, W) to (B, C, b H, b W), with the channel running fastest."""
    batch, channels, height, width = x.shape
    b = block_size
    x = x.reshape(batch, b, b, channels // b**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // b**2, height * b, width * b)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of `depth_to_space`."""
    batch, channels, height, width = x.shape
    b = block_size
    x = x.reshape(batch, channels, height // b, b, width // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * b**2, height // b, width // b)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Windows along `axis` become a new axis after it."""
    axis = axis % x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)
