"""Activations recomputed in the backward pass instead of being kept.

Unlike `mx.checkpoint`, this orders the backward pass. Evaluation is lazy and would otherwise go on
to earlier layers before this one is finished, and so keep everything that was recomputed.
Source of the idea: Chen et al. 2016 (arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mdm_apple.mlx.weights import flat, nested

KeysValues = tuple[mx.array, mx.array]
Layer = Callable[[mx.array, mx.array, tuple[KeysValues, ...]], mx.array]


def recomputed(
    module: nn.Module,
    layer: Layer,
    h: mx.array,
    temb: mx.array,
    text: tuple[KeysValues, ...],
) -> mx.array:
    """`layer(h, temb, text)`, keeping only its inputs; the layer uses the weights of `module`."""
    parameters = flat(module.trainable_parameters())
    count = len(parameters)

    def run(*arrays: mx.array) -> mx.array:
        module.update(nested(dict(zip(parameters, arrays, strict=False))))
        h, temb, *rest = arrays[count:]
        return layer(h, temb, tuple(zip(rest[::2], rest[1::2], strict=True)))

    kept = mx.custom_function(run)

    @kept.vjp
    def backward(
        primals: Sequence[mx.array], cotangent: mx.array, output: mx.array
    ) -> list[mx.array]:
        late = mx.depends(list(primals), [cotangent])
        _, gradients = mx.vjp(run, late, [cotangent])
        return mx.depends(gradients, gradients)  # returns none before all are computed

    out: Any = kept(*parameters.values(), h, temb, *(part for pair in text for part in pair))
    return out
