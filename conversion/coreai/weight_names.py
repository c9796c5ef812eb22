"""The names of weights in a Core AI program: those that a Core ML package gives them.

A recipe that names weights then fits the bundles of both formats. coremltools names a constant
after the last node of the captured graph that it folds: the parameter itself, or the view that a
layer takes of it. Transposes add nothing to a name, because Core ML needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

VIEWS = (torch.ops.aten.select.int,)


def named_weights(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Weights by the names of their constants: views, outermost first, then whole parameters."""
    targets = {spec.arg.name: spec.target or "" for spec in program.graph_signature.input_specs}
    whole: dict[str, Tensor] = {}
    views: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.users and targets[node.name] in program.state_dict:
            whole[node.name] = program.state_dict[targets[node.name]]
        elif node.target in VIEWS:
            base = (whole | views).get(node.args[0].name)
            if base is not None:
                views[node.name] = node.target(base, *node.args[1:])
    outermost = dict(reversed(views.items()))
    return {f"{name}_to_fp16": tensor for name, tensor in (outermost | whole).items()}


def names_by_digest(functions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Names of the weights of a package by the SHA-256 of their bytes.

    Weights that are equal share the first name. A name that means another weight in an earlier
    function is written with its function, as in recipes for Core ML.

    Args:
        functions: the weights of each function by their names, views before what they show.
    """
    known: dict[str, str] = {}
    for function in sorted(functions):
        taken = set(known.values())
        for name, tensor in functions[function].items():
            unique = f"{function}/{name}" if name in taken else name
            for digest in _digests(tensor):
                known.setdefault(digest, unique)
    return known


def _digests(tensor: Tensor) -> Iterator[str]:
    """Of the numbers as they are and, for a matrix, transposed, as the converter may store it."""
    yield _digest(tensor)
    if tensor.ndim >= 2 and tensor.shape[0] * tensor.shape[1] == tensor.numel():
        yield _digest(tensor.transpose(0, 1))


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()
