"""What running a package takes: arithmetic, memory, and where it could be cut in two.

Everything here is counted from the program; the times are estimates from a table of chips and were
not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..bundle.manifest import PackageInfo, PeakMemory, Phase, package_bytes
from ..execute import TensorType
from ..execute.graph import Function, Operation
from ..execute.liveness import last_uses

PHASES: tuple[Phase, ...] = ("text", "prompt", "step")


@dataclass(frozen=True)
class Chip:
    """Operations of the Neural Engine and bytes of main memory per second, as Apple announced them.

    sources: pages that quote the announcement, for both numbers. assumption: what is not in them.
    """

    name: str
    operations: float
    bandwidth: float
    sources: tuple[str, ...]
    assumption: str


# Only chips of which both numbers were found; Apple publishes no bandwidth of a phone's memory.
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
    """flops: 2 per multiplication with addition, 1 per value of any other operation.

    traffic: bytes that operations read and write, each as if from memory, weights as stored.
    """

    flops: int
    traffic: int
    weight_bytes: int

    def seconds(self, chip: Chip) -> float:
        """Estimate, a lower bound: the slower of arithmetic and memory at their announced rates."""
        return max(self.flops / chip.operations, self.traffic / chip.bandwidth)


@dataclass(frozen=True)
class CutPoint:
    """A place after operation `index` where few bytes pass from one half to the other.

    share: of the weights' bytes that lie before it.
    """

    index: int
    operation: str
    tensors: int
    crossing_bytes: int
    share: float


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
    """Bytes of the numbers that a constant operation holds, in the form in which it holds them."""
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
            shared = kind("x").count * kind("y").count / max(1, out.count)
            batch = math.prod(out.shape[:-2])
            return 2 * out.count * max(1, round(math.sqrt(shared / max(1, batch))))
        case "einsum":  # nchw,nwhu->nchu
            return 2 * out.count * kind("values").shape[-1]
        case "scaled_dot_product_attention":
            return 4 * kind("query").count * kind("key").shape[-2]
        case _:
            return sum(k.count for _, k in operation.outputs)


def cut_points(function: Function, lowest: float = 0.35, highest: float = 0.65) -> list[CutPoint]:
    """The three cheapest places to cut a function so that its weights are about halved."""
    kinds, last = value_types(function), last_uses(function)
    constant = {n for o in function.operations if o.is_constant for n, _ in o.outputs}
    size = {n: stored_bytes(o) for o in function.operations if o.is_constant for n, _ in o.outputs}
    total = max(1, sum(size.values()))
    live = {name for name in function.inputs if name in last}
    before, seen = 0, set[str]()
    found: list[CutPoint] = []
    for index, operation in enumerate(function.operations):
        if operation.is_constant:
            continue
        used = operation.reads
        stored = used & constant
        before += sum(size[n] for n in stored - seen)
        seen |= stored
        live |= {name for name, _ in operation.outputs}
        live = {n for n in live if last.get(n, len(function.operations)) > index}
        share = before / total
        if lowest <= share <= highest:
            crossing = sum(kinds[n].bytes for n in live if n not in function.inputs)
            carried = [n for n in live if n not in function.inputs]
            found.append(CutPoint(index, operation.name, len(carried), crossing, share))
    return sorted(found, key=lambda c: (c.crossing_bytes, abs(c.share - 0.5), c.index))[:3]


def peak_memory(packages: Sequence[PackageInfo]) -> PeakMemory:
    """Bytes needed at most, under three policies of keeping packages loaded. A prediction.

    Weights, the largest activations of a call, and what passes from package to package.
    """
    carried = carried_bytes(packages)
    needs = [p.activation_bytes + c for p, c in zip(packages, carried, strict=True)]
    by_phase = [
        package_bytes(p for p in packages if p.phase == phase)
        + max((n for p, n in zip(packages, needs, strict=True) if p.phase == phase), default=0)
        for phase in PHASES
    ]
    return PeakMemory(
        resident=package_bytes(packages) + max(needs, default=0),
        staged=max(by_phase),
        minimal=max((p.bytes + n for p, n in zip(packages, needs, strict=True)), default=0),
    )


def carried_bytes(packages: Sequence[PackageInfo]) -> list[int]:
    """While each package runs: bytes of values of earlier packages that only later ones read.

    What a prompt contributes stays for all steps.
    """
    size = {
        f.name: TensorType(f.dtype, f.shape).bytes
        for p in packages
        for f in (*p.inputs, *p.outputs)
    }
    last = {f.name: i for i, p in enumerate(packages) for f in p.inputs}
    for p in packages:
        if p.phase != "step":
            last |= {f.name: len(packages) for f in p.outputs if f.name in last}
    out: list[int] = []
    made: set[str] = set()
    for i, package in enumerate(packages):
        own = {f.name for f in package.inputs}
        waiting = {n for n in made - own if last.get(n, -1) > i}
        out.append(sum(size[n] for n in waiting))
        made |= {f.name for f in package.outputs}
    return out
