"""Lists of tensors of one shape, which loops fill: kept as one tensor with the list as first axis.

Each function is the MIL operation of its name and takes the operation's parameters by name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdm_apple.config.types import Ints


def make_list(
    elem_shape: Ints = (), init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> Tensor:
    """A list of `init_length` tensors of zeros."""
    kind = torch.float32 if dtype.startswith("fp") else torch.int64
    return torch.zeros((init_length, *elem_shape), dtype=torch.bool if dtype == "bool" else kind)


def list_length(ls: Tensor) -> Tensor:
    return torch.tensor(ls.shape[0], device=ls.device)


def list_read(ls: Tensor, index: int) -> Tensor:
    return ls[_within(ls, index)]


def list_gather(ls: Tensor, indices: Ints) -> Tensor:
    """The elements at `indices`, stacked along a new first axis."""
    places = [_within(ls, index) for index in indices]
    return ls.index_select(0, torch.tensor(places, dtype=torch.int64, device=ls.device))


def list_write(ls: Tensor, index: int, value: Tensor) -> Tensor:
    """The list with one element replaced; it grows if `index` lies beyond its end."""
    return list_scatter(ls, (index,), value.unsqueeze(0))


def list_scatter(ls: Tensor, indices: Ints, value: Tensor) -> Tensor:
    """The list with the elements at `indices` replaced by those of `value`; it may grow."""
    if len(indices) != value.shape[0] or any(index < 0 for index in indices):
        raise ValueError(f"{value.shape[0]} elements cannot be put at {list(indices)[:4]}")
    missing = max(indices, default=-1) + 1 - ls.shape[0]
    if missing > 0:
        ls = torch.cat([ls, ls.new_zeros((missing, *ls.shape[1:]))])
    places = torch.tensor(list(indices), dtype=torch.int64, device=ls.device)
    return ls.index_copy(0, places, value)


def _within(ls: Tensor, index: int) -> int:
    if not 0 <= index < ls.shape[0]:
        raise ValueError(f"index {index} lies outside a list of {ls.shape[0]}")
    return index
