"""Activations computed again in the backward pass instead of being kept.

Beyond `mx.checkpoint` this orders the backward pass: evaluation is lazy and would otherwise go on
to earlier layers before it has finished with this one, and so keep all that was recomputed.
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
    """`layer(h, temb, text)`, of which only inputs are kept; its weights are those of `module`."""
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
        return mx.depends(gradients, gradients)  # none is handed on before all are there

    out: Any = kept(*parameters.values(), h, temb, *(part for pair in text for part in pair))
    return out
