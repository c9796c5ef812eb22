"""Operations that multiply by weights: convolution, matrix products, attention.

Each function is the MIL operation of its name and takes the operation's parameters by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdm_apple.config.types import Ints

from .ops_elementwise import per_channel


def same_padding(
    size: tuple[int, ...], kernel: Ints, strides: Ints, lower: bool
) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) per spatial axis that give ceil(size / stride) output positions.

    If the total is odd, the extra zero goes after the data, or before it if `lower`.
    """
    out: list[tuple[int, int]] = []
    for n, k, s in zip(size, kernel, strides, strict=True):
        total = max(0, (-(-n // s) - 1) * s + k - n)
        less, more = total // 2, total - total // 2
        out.append((more, less) if lower else (less, more))
    return tuple(out)


def padding(
    pad_type: str, pad: Ints | None, size: tuple[int, ...], kernel: Ints, strides: Ints
) -> tuple[tuple[int, int], ...]:
    """Zeros (before, after) per spatial axis; `kernel` is the extent after dilation."""
    if pad_type == "valid":
        return ((0, 0),) * len(size)
    if pad_type in ("same", "same_lower"):
        return same_padding(size, kernel, strides, pad_type == "same_lower")
    if pad_type != "custom":
        raise ValueError(f"unknown pad_type {pad_type!r}")
    if pad is None:
        return ((0, 0),) * len(size)
    return tuple(zip(pad[::2], pad[1::2], strict=True))


def pad_spatial(x: Tensor, pads: tuple[tuple[int, int], ...], value: float) -> Tensor:
    """Pad the last axes of x; torch counts them from the end."""
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of x (B, C, *size) in 1 to 3 axes with weight (C_out, C / groups, *kernel)."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    extent = tuple((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True))
    pads = padding(pad_type, pad, tuple(x.shape[2:]), extent, strides)
    if any(before != after for before, after in pads):
        x, pads = pad_spatial(x, pads, 0.0), ((0, 0),) * rank
    both = tuple(before for before, _ in pads)
    if rank == 2:
        return F.conv2d(x, weight, bias, strides, both, dilations, groups)
    if rank == 1:
        return F.conv1d(x, weight, bias, strides, both, dilations, groups)
    return F.conv3d(x, weight, bias, strides, both, dilations, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution of x (B, C, *size) with weight (C, C_out / groups, *kernel)."""
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"pad_type {pad_type!r} is not supported")
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    zeros = (0,) * rank
    if rank == 2:
        full = F.conv_transpose2d(x, weight, None, strides, zeros, zeros, groups, dilations)
    elif rank == 1:
        full = F.conv_transpose1d(x, weight, None, strides, zeros, zeros, groups, dilations)
    else:
        full = F.conv_transpose3d(x, weight, None, strides, zeros, zeros, groups, dilations)
    pads = padding(pad_type, pad, tuple(full.shape[2:]), zeros, strides)
    for axis, (before, after) in enumerate(pads, start=2):
        size = full.shape[axis] - before - after
        if output_shape is not None:
            size = output_shape[axis]
        missing = before + size - full.shape[axis]  # beyond the last input there is only the bias
        if missing > 0:
            full = F.pad(full, [0, 0] * (full.ndim - 1 - axis) + [0, missing])
        full = full.narrow(axis, before, size)
    return full if bias is None else full + per_channel(bias, full)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D_in) times the transpose of weight (D_out, D_in)."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Matrix product over the last two axes; the rest is broadcast, vectors are not transposed."""
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    return torch.matmul(x, y)


def einsum(values: tuple[Tensor, ...], equation: str) -> Tensor:
    """Product over one axis with a batch axis between, as the two equations of MIL allow.

    MIL broadcasts batch axes of size 1, which an einsum equation by itself would refuse.
    """
    left, rest = equation.replace(" ", "").split(",")
    right, out = rest.split("->")
    x, y = values
    sizes = {name: x.shape[i] for i, name in enumerate(left)}
    for i, name in enumerate(right):
        sizes[name] = max(sizes.get(name, 1), y.shape[i])
    x = x.expand([sizes[name] if name in out else n for name, n in zip(left, x.shape, strict=True)])
    y = y.expand(
        [sizes[name] if name in out else n for name, n in zip(right, y.shape, strict=True)]
    )
    return torch.einsum(f"{left},{right}->{out}", x, y)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value; a boolean mask is True at keys to keep."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
