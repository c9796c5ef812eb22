"""The cost of running a package in arithmetic and memory traffic.

Costs are counted from the program. Times are estimates from a table of chips, not measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..execute import TensorType
from ..execute.graph import Function, Operation


@dataclass(frozen=True)
class Chip:
    """A chip's Neural Engine operations and memory bytes per second, as Apple announced them.

    sources: pages that quote both numbers from the announcement. assumption: added by us.
    """

    name: str
    operations: float
    bandwidth: float
    sources: tuple[str, ...]
    assumption: str


# Only chips with sources for both numbers; Apple publishes no memory bandwidth for phones.
CHIPS = (
    Chip(
        "M2",
        15.8e12,
        100e9,
        (
            "https://www.geeky-gadgets.com/apple-m2-10-core-gpu-07-06-2022/",
            "https://www.macrumors.com/2022/06/06/apple-announces-m2-chip-with-support-for-up-to-"
            "24gb-memory/",
        ),
        "the operations are those of fp16",
    ),
    Chip(
        "M4",
        19e12,
        120e9,
        (
            "https://www.businesswire.com/news/home/20240507452955/en/",
            "https://www.engadget.com/apples-m4-chip-arrives-with-a-big-focus-on-ai-142448428.html",
        ),
        "the 38 trillion operations are those of int8, and fp16 runs at half of that",
    ),
)


@dataclass(frozen=True)
class Cost:
    """flops: 2 per multiply-add, 1 per value of any other operation.

    traffic: bytes that operations read and write, as if all went through memory; weights as stored.
    """

    flops: int
    traffic: int
    weight_bytes: int

    def seconds(self, chip: Chip) -> float:
        """Estimated lower bound: the slower of arithmetic and memory at the announced rates."""
        return max(self.flops / chip.operations, self.traffic / chip.bandwidth)


def cost_of(function: Function) -> Cost:
    """Count one call of a function."""
    kinds = value_types(function)
    constant = {n for o in function.operations if o.is_constant for n, _ in o.outputs}
    flops = traffic = 0
    for operation in function.operations:
        if operation.is_constant:
            continue
        flops += _flops(operation, kinds)
        read = sum(kinds[n].bytes for n in operation.reads if n not in constant)
        traffic += read + sum(kind.bytes for _, kind in operation.outputs)
    weights = sum(stored_bytes(o) for o in function.operations if o.is_constant)
    return Cost(flops, traffic + weights, weights)


def value_types(function: Function) -> dict[str, TensorType]:
    """The type of every value of a function."""
    return dict(function.inputs) | {n: k for o in function.operations for n, k in o.outputs}


def stored_bytes(operation: Operation) -> int:
    """Bytes of the numbers in a constant operation, in their stored form."""
    literals = [b for parts in operation.inputs.values() for b in parts if not isinstance(b, str)]
    return sum(b.type.bytes for b in literals)


def _flops(operation: Operation, kinds: dict[str, TensorType]) -> int:
    out = operation.outputs[0][1]

    def kind(parameter: str, position: int = 0) -> TensorType:
        binding = operation.inputs[parameter][position]
        return kinds[binding] if isinstance(binding, str) else binding.type

    match operation.kind:
        case "conv":
            return 2 * out.count * math.prod(kind("weight").shape[1:])
        case "linear":
            return 2 * out.count * kind("weight").shape[-1]
        case "matmul":
            return 2 * out.count * _shared_axis(kind("x").shape, out.shape)
        case "einsum":  # nchw,nwhu->nchu
            return 2 * out.count * kind("values").shape[-1]
        case "scaled_dot_product_attention":
            return 4 * kind("query").count * kind("key").shape[-2]
        case _:
            return sum(k.count for _, k in operation.outputs)


def _shared_axis(x: tuple[int, ...], out: tuple[int, ...]) -> int:
    """The length over which a matrix product sums, transposed or not; the right side may lack the
    left's batch."""
    if len(x) < 2:
        return math.prod(x)
    return max(1, math.prod(x[-2:]) // max(1, out[-2]))
