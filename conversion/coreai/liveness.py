"""The memory that a captured graph needs at once, without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.export.graph_signature import InputKind

# operations whose result shares the memory of their first argument
VIEWS = {
    torch.ops.aten.view.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.squeeze.dims,
    torch.ops.aten.expand.default,
    torch.ops.aten.split_with_sizes.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.select.int,
}
WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def peak_bytes(program: torch.export.ExportedProgram) -> int:
    """The most bytes that inputs and computed values occupy at once; a view keeps its base."""
    nodes = list(program.graph.nodes)
    specs = program.graph_signature.input_specs
    weights = {spec.arg.name for spec in specs if spec.kind in WEIGHTS}
    owner: dict[Any, Any] = {}
    until: dict[Any, int] = {}
    for index, node in enumerate(nodes):
        if _is_view(node):
            owner[node] = owner.get(node.args[0], node.args[0])
        else:
            owner[node] = node
        for used in node.all_input_nodes:
            until[owner[used]] = index
    live = peak = 0
    freed: dict[int, int] = {}
    for index, node in enumerate(nodes):
        size = 0 if owner[node] is not node else sum(_bytes(node))
        if node.op == "placeholder" and node.name in weights:
            continue
        live += size
        peak = max(peak, live)
        last = until.get(node, index)
        freed[last] = freed.get(last, 0) + size
        live -= freed.get(index, 0)
    return peak


def _is_view(node: Any) -> bool:
    return node.target in VIEWS or getattr(node.target, "__name__", "") == "getitem"


def _bytes(node: Any) -> Iterator[int]:
    value = node.meta.get("val") if node.op in ("placeholder", "call_function") else None
    for tensor in value if isinstance(value, tuple | list) else (value,):
        if isinstance(tensor, torch.Tensor):
            yield math.prod(tensor.shape) * tensor.element_size()
