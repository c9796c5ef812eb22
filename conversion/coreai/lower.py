"""Turns parts into a Core AI program: captured by torch, converted by Apple's coreai-torch.

Input: parts in fp32. Output: one program with a function per part, whose numbers have one type
throughout. A single fp32 operation would leave the Neural Engine, so the casts to fp32 that the
networks end in are removed from the captured graph.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from mdm_apple.config.types import ExecutorPrecision
from mdm_apple.torch.layers import ResNet

from ..bundle.manifest import Feature
from ..layouts.parts import Part
from .liveness import peak_bytes
from .weight_names import named_weights
from .wheels import quiet

CASTS = (
    torch.ops.aten.to.dtype,
    torch.ops.aten.to.dtype_layout,
    torch.ops.aten._to_copy.default,
)
DTYPES: dict[ExecutorPrecision, torch.dtype] = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Lowered:
    """A part as it was captured. weights: by the names of their constants."""

    part: Part
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    activation_bytes: int
    weights: dict[str, Tensor]


def lower(
    parts: Sequence[Part], precision: ExecutorPrecision, as_core_ml: bool = False
) -> tuple[Any, list[Lowered]]:
    """One program (a `coreai.authoring.AIProgram`), and each part's facts, in order.

    A single part becomes the function `main`; several keep their names. Weights are rounded to fp16
    either way; precision says how the program computes. as_core_ml: compute what coremltools
    writes, to the last digits: the numbers in the code, an epsilon say, are rounded to fp16, and a
    group norm is followed by a batch norm, which adds an epsilon of its own.
    """
    with quiet("coreai_torch"):
        from coreai_torch import TorchConverter, get_decomp_table

        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)  # no source paths
        lowered: list[Lowered] = []
        for part in parts:
            module = copy.deepcopy(part.module).eval().half().to(DTYPES[precision])
            _time_layers_as_convolutions(module)
            if as_core_ml:
                _add_second_epsilons(module)
            program = _captured(module, part, DTYPES[precision], get_decomp_table())
            if as_core_ml:
                _round_scalars(program.graph)
            converter.add_exported_program(
                program,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                entrypoint_name="main" if len(parts) == 1 else part.name,
            )
            lowered.append(_facts(part, program))
        with _repeatable_names():
            return converter.to_coreai(), lowered


class RowAsPixel(nn.Module):
    """A linear layer as a 1x1 convolution of one pixel: (B, D) to (B, D')."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight[:, :, None, None]
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, None, None], self.weight, self.bias).flatten(1)


def _time_layers_as_convolutions(module: nn.Module) -> None:
    """Apple's runtime adds up a convolution in fp32 and a product of matrices in fp16.

    The time layers scale and shift every channel. In fp16 they cost a resnet 7 dB.
    """
    for layer in module.modules():
        if isinstance(layer, ResNet):
            layer.add_module("time_layer", RowAsPixel(layer.time_layer))


def _captured(
    module: nn.Module, part: Part, dtype: torch.dtype, decompositions: dict[Any, Any]
) -> torch.export.ExportedProgram:
    inputs = tuple(v.to(dtype) if v.is_floating_point() else v for v in part.inputs.values())
    with torch.no_grad():
        program = torch.export.export(module, inputs, strict=False)
        if dtype != torch.float32:
            _keep_type(program.graph_module, dtype)
        return program.run_decompositions(decompositions)


def _keep_type(module: torch.fx.GraphModule, dtype: torch.dtype) -> None:
    """Remove casts of numbers to another floating type."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in CASTS:
            continue
        source, value = node.args[0], node.meta["val"]
        if source.meta["val"].dtype == dtype and value.is_floating_point():
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.recompile()


def _add_second_epsilons(module: nn.Module) -> None:
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.weight.mul_((1 + norm.eps) ** -0.5)


def _round_scalars(graph: torch.fx.Graph) -> None:
    def rounded(value: Any) -> Any:
        return float(np.float16(value)) if isinstance(value, float) else value

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = map_aggregate(node.args, rounded)
            node.kwargs = map_aggregate(node.kwargs, rounded)


def _facts(part: Part, program: torch.export.ExportedProgram) -> Lowered:
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    given = values[len(values) - len(part.inputs) :]
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    made = [node.meta["val"] for node in output.args[0]]
    return Lowered(
        part,
        tuple(map(_feature, part.inputs, given)),
        tuple(map(_feature, part.outputs, made)),
        peak_bytes(program),
        named_weights(program),
    )


def _feature(name: str, value: Tensor) -> Feature:
    kinds = {torch.float16: "fp16", torch.float32: "fp32", torch.int32: "int32"}
    return Feature(name, kinds[value.dtype], tuple(value.shape))  # type: ignore[arg-type]


@contextmanager
def _repeatable_names() -> Generator[None]:
    """coreai names private functions by `secrets.choice`; a seeded one gives the same names."""
    from coreai.authoring import graph_builder

    before = graph_builder.choice
    graph_builder.choice = random.Random(0).choice
    try:
        yield
    finally:
        graph_builder.choice = before
