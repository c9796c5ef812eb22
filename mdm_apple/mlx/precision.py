"""Number types of a network's layers: reduced where safe, fp32 elsewhere.

Embeddings of times, conditions and text, norms and the sampler stay fp32 in every mode (999 is 1000
in bf16); convolutions and matrix products compute in the type of their weights.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mdm_apple.config.shapes import stays_fp32
from mdm_apple.config.types import Precision
from mdm_apple.mlx.weights import flat, nested

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}


def may_be_reduced(name: str, module: nn.Module) -> bool:
    """Whether a layer keeps its quality in 16 bits or fewer."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and not stays_fp32(name)


def reducible(net: nn.Module) -> frozenset[str]:
    """Names of the weights and biases of all such layers."""
    layers = {name for name, module in net.named_modules() if may_be_reduced(name, module)}
    return frozenset(name for name in flat(net.parameters()) if name.rpartition(".")[0] in layers)


def cast(net: nn.Module, precision: Precision) -> None:
    """Convert the reducible weights in place, for inference."""
    if precision == "fp32":
        return
    chosen, dtype = reducible(net), DTYPES[precision]
    weights = flat(net.parameters())
    net.update(nested({name: weights[name].astype(dtype) for name in chosen}))
    mx.eval(net.parameters())
