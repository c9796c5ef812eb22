"""Conversion of weights between a model folder (names and layout of torch) and MLX, by shape.

A convolution (out, in, height, width) becomes (out, height, width, in), or (out, in) if the network
has a Linear for a 1x1 kernel; a 1-D one (out, in, width) becomes (out, width, in). Names are equal,
and values are moved, never rounded, so a round trip gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mdm_apple.config.types import Floats, Shape
from mdm_apple.errors import MdmError


def to_mlx(value: Floats, shape: Shape) -> mx.array:
    """An array of a model folder in the layout of an MLX parameter of `shape`."""
    if value.ndim == 4 and len(shape) == 2 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    elif value.ndim in (3, 4) and value.ndim == len(shape):
        value = np.moveaxis(value, 1, -1)
    return mx.array(np.ascontiguousarray(value, np.float32))


def to_folder(value: mx.array, shape: Shape) -> Floats:
    """An MLX parameter, or a moment of its shape, in the layout of a folder's `shape`."""
    array = np.array(value.astype(mx.float32))
    if len(shape) == 4 and array.ndim == 2:
        return array.reshape(shape)
    if len(shape) in (3, 4):
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array


def flat(parameters: Any) -> dict[str, mx.array]:
    """Nested parameters as a flat dict with dotted names."""
    return dict(tree_flatten(parameters))


def nested(parameters: Mapping[str, mx.array]) -> Any:
    """The inverse of `flat`."""
    return tree_unflatten(list(parameters.items()))


def load_weights(module: nn.Module, weights: Mapping[str, Floats], prefix: str = "") -> None:
    """Load the weights of a folder strictly: every parameter whose name starts with `prefix`.

    Raises MdmError for a missing or unexpected name, or a shape that does not fit.
    """
    own = flat(module.parameters())
    missing = [name for name in own if name.startswith(prefix) and name not in weights]
    for name in (*missing, *weights):
        shape = tuple(own[name].shape) if name in own else None
        moved = to_mlx(weights[name], shape) if name in weights and shape else None
        if moved is None or tuple(moved.shape) != shape:
            raise MdmError(
                f"weights: {name} does not fit this configuration; use the one it came with."
            )
        own[name] = moved
    module.update(nested(own))


def save_weights(values: Mapping[str, mx.array], shapes: Mapping[str, Shape]) -> dict[str, Floats]:
    """Arrays by parameter name in a folder's layout, in the order of `shapes`."""
    return {name: to_folder(values[name], shape) for name, shape in shapes.items()}
