"""Number types of a network's layers: reduced where safe, fp32 elsewhere.

Embeddings of times, conditions and text, norms and the sampler stay fp32 in every mode (999 is 1000
in bf16); convolutions and matrix products compute in the type of their weights.
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
from mlx import nn

from mdm_apple.mlx.weights import flat, nested

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
FP32_MODULES = ("temb_", "cond_layers", "cond_emb", "lm_proj", "lm_head", "norm")


def may_be_reduced(name: str, module: nn.Module) -> bool:
    """Whether a layer keeps its quality in 16 bits or fewer."""
    keep = any(part.startswith(FP32_MODULES) for part in name.split("."))
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and not keep


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
