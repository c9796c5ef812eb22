"""What is in a Core AI program: operations, types, weights, and what public guidance warns of.

Anybody's program may be looked at here, so this runs in the child: a damaged one ends its process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..execute.graph import TensorType
from ..limits import HIGHEST_RANK, LARGEST_FP16, SHORT_AXIS, SMALL_CONSTANT
from .compressed import LOOKUP, SCALING
from .program import (
    Constant,
    functions,
    graph_name,
    is_private,
    operations,
    stored_bytes,
)
from .weights import maker_of, weights_in

UNKNOWN_SIZE = -1
SHOWN = 20  # findings, of each rule
LONGEST_NAME = 160
SELECTING = ("argmax", "argsort", "sort", "topk", "gather_nd", "gather_along_axis")


@dataclass(frozen=True)
class Found:
    """An operation that breaks a rule, and how."""

    rule: str
    operation: str
    detail: str


@dataclass(frozen=True)
class Census:
    """functions: all names. inputs, outputs: what each takes or is, by name.

    Where there are several functions, a name starts with that of its function and a slash.
    operations: count of each kind without constants; a composite counts under its own name.
    computed: count of results by type. stored: bytes of stored constants by type. parameters: the
    numbers that the operations compute with. findings: counts by rule, of which `first` are shown.
    What functions share by the name of its buffer is counted once.
    """

    functions: tuple[str, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]
    operations: dict[str, int]
    computed: dict[str, int]
    stored: dict[str, int]
    parameters: int
    plain_weights: int
    compressed_weights: int
    findings: dict[str, int]
    first: tuple[Found, ...]


def read_census(values: dict[str, Any]) -> Census:
    """A census that was written with `dataclasses.asdict` and JSON."""
    names, first = tuple(values["functions"]), tuple(Found(**f) for f in values["first"])
    return replace(Census(**values), functions=names, first=first)


def census(program: Any, function: str | None) -> Census:
    """Of one function, or of all. Raises ValueError if there is no such function."""
    graphs = {graph_name(graph): graph for graph in functions(program)}
    public = [name for name, graph in graphs.items() if not is_private(graph)]
    chosen = public if function is None else [function]
    if not set(chosen) <= set(public):
        raise ValueError(f"it has no function {function!r}")
    entered = [graphs[name] for name in chosen]
    reached = list(_reached(entered, graphs))
    own = [operation for graph in entered for operation in operations(graph)]
    kinds = Counter(_kind(o, graphs) for o in own if not _is_stored(o) and _name(o) != "output")
    findings = [f for graph in entered for f in _of_features(graph)]
    findings += [f for graph in reached for f in _of_operations(graph)]
    counts = Counter(found.rule for found in findings)
    seen = Counter[str]()
    first: list[Found] = []
    for found in findings:
        seen[found.rule] += 1
        if seen[found.rule] <= SHOWN:
            first.append(found)
    return Census(
        functions=tuple(map(_shown, public)),
        inputs=_by_name(entered, _inputs),
        outputs=_by_name(entered, _outputs),
        operations=dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        computed=_computed(reached),
        stored=_stored(reached),
        parameters=_parameters(own),
        plain_weights=len(weights_in(entered)),
        compressed_weights=sum(_name(o) in DECODERS for o in _each_once(own)),
        findings=dict(counts),
        first=tuple(first),
    )


DECODERS = tuple(name.removeprefix("coreai.") for name in (LOOKUP, SCALING))


def _reached(entered: list[Any], graphs: dict[str, Any]) -> Iterator[Any]:
    """Some graphs and all that they call, each once."""
    pending, seen = list(entered), set(map(graph_name, entered))
    while pending:
        graph = pending.pop(0)
        yield graph
        for operation in operations(graph):
            callee = _callee(operation)
            if callee in graphs and callee not in seen:
                seen.add(callee)
                pending.append(graphs[callee])


def _callee(operation: Any) -> str:
    if operation.operation.name != "coreai.invoke":
        return ""
    return str(operation.attributes["callee"]).partition("@")[2].split(">")[0].strip('"')


def _kind(operation: Any, graphs: dict[str, Any]) -> str:
    """The name of an operation, or of the composite that it calls."""
    called = graphs.get(_callee(operation))
    if called is not None and "composite_decl" in called.operation.attributes:
        return _shown(str(called.operation.attributes["composite_decl"]).split('"')[1])
    return _shown(_name(operation))


def _name(operation: Any) -> str:
    name: str = operation.operation.name
    return name.removeprefix("coreai.").removeprefix("decomposable.")


def _is_stored(operation: Any) -> bool:
    """Whether it is a constant, or makes one from smaller ones."""
    return _name(operation) in ("constant", *DECODERS)


def _shown(name: str) -> str:
    """A name from a file as it may be printed."""
    return "".join(c if c.isprintable() else "?" for c in name[:LONGEST_NAME])


# --- types --------------------------------------------------------------------------------------


def _type(value_type: Any) -> TensorType | None:
    """In the words of the Core ML executor; None for what is no tensor."""
    from coreai._compiler.ir import RankedTensorType

    if not RankedTensorType.isinstance(value_type):
        return None
    kind = RankedTensorType(value_type)
    sizes = [
        UNKNOWN_SIZE if kind.is_dynamic_dim(k) else kind.get_dim_size(k) for k in range(kind.rank)
    ]
    return TensorType(_dtype(str(kind.element_type)), tuple(sizes))


def _dtype(mlir: str) -> str:
    """f16 is fp16, ui4 is uint4, si8 is int8, i1 is bool."""
    if mlir == "i1":
        return "bool"
    for start, ours in (("ui", "uint"), ("si", "int"), ("bf", "bf"), ("f", "fp"), ("i", "int")):
        if mlir.startswith(start) and mlir[len(start) : len(start) + 1].isdigit():
            return _shown(ours + mlir.removeprefix(start))
    return _shown(mlir)


def _results(operation: Any) -> Iterator[TensorType]:
    for result in operation.results:
        kind = _type(result.type)
        if kind is not None:
            yield kind


def _inputs(graph: Any) -> Iterator[tuple[str, TensorType]]:
    types = graph.operation.attributes["function_type"].value.inputs
    yield from _named(graph.operation.attributes["arg_attrs"], types)


def _outputs(graph: Any) -> Iterator[tuple[str, TensorType]]:
    types = graph.operation.attributes["function_type"].value.results
    yield from _named(graph.operation.attributes["res_attrs"], types)


def _by_name(
    graphs: list[Any], features: Callable[[Any], Iterator[tuple[str, TensorType]]]
) -> dict[str, str]:
    """The features of some functions; several may use one name for different things."""
    return {
        f"{_shown(graph_name(graph))}/{name}" if len(graphs) > 1 else name: str(kind)
        for graph in graphs
        for name, kind in features(graph)
    }


def _named(attributes: Any, types: Any) -> Iterator[tuple[str, TensorType]]:
    for k, (attribute, value_type) in enumerate(zip(attributes, types, strict=False)):
        name = attribute["coreai.name"].value if "coreai.name" in attribute else str(k)
        kind = _type(value_type)
        yield _shown(name), kind if kind is not None else TensorType(_shown(str(value_type)), ())


# --- numbers ------------------------------------------------------------------------------------


def _computed(graphs: list[Any]) -> dict[str, int]:
    counts = Counter(
        kind.dtype
        for graph in graphs
        for operation in operations(graph)
        if not _is_stored(operation)
        for kind in _results(operation)
    )
    return dict(counts.most_common())


def _stored(graphs: list[Any]) -> dict[str, int]:
    sizes: dict[str, tuple[str, int]] = {}
    for graph in graphs:
        for operation in operations(graph):
            constant = Constant.of(operation)
            if constant is not None:
                size = stored_bytes(constant.shape, constant.dtype)
                sizes[constant.name] = _dtype(constant.dtype), size
    totals = Counter[str]()
    for dtype, size in sizes.values():
        totals[dtype] += size
    return dict(totals.most_common())


def _each_once(own: list[Any]) -> Iterator[Any]:
    """Operations, those that show the same buffers in the same form only once."""
    seen = set[tuple[str, str, tuple[str, ...]]]()
    for operation in own:
        buffers = _buffers(operation)
        shown = _name(operation), str(list(_results(operation))), buffers
        if not buffers or shown not in seen:
            seen.add(shown)
            yield operation


def _buffers(operation: Any) -> tuple[str, ...]:
    """The names of the buffers that a constant, or an operation that makes one, reads."""
    if not _is_stored(operation):
        return ()
    makers = [operation.operation]
    if _name(operation) in DECODERS:
        makers = [maker for value in operation.operands for maker in maker_of(value)]
    found = (Constant.of(maker) for maker in makers)
    return tuple(constant.name for constant in found if constant is not None)


def _parameters(own: list[Any]) -> int:
    """Numbers of constants in any form that operations read, apart from single numbers."""
    total = 0
    for operation in _each_once(own):
        if _is_stored(operation) and any(
            use.owner.name not in (LOOKUP, SCALING) for use in operation.results[0].uses
        ):
            total += sum(kind.count for kind in _results(operation) if kind.is_float and kind.shape)
    return total


# --- rules --------------------------------------------------------------------------------------


def _of_features(graph: Any) -> Iterator[Found]:
    for way, features in (("input", _inputs(graph)), ("output", _outputs(graph))):
        for name, kind in features:
            if not kind.is_fixed:
                yield Found("dynamic-shape", f"{way} {name}", f"is {kind}")
            elif kind.shape and kind.shape[-1] < SHORT_AXIS and kind.is_float:
                yield Found("short-last-axis", f"{way} {name}", f"is {kind}")


def _of_operations(graph: Any) -> Iterator[Found]:
    for k, operation in enumerate(operations(graph)):
        name = _name(operation)
        label = f"{_shown(name)} {k}"
        if name == "constant":
            if _is_infinite(operation):
                yield Found("infinity", label, "holds an infinity or the least number of fp16")
            continue
        yield from _of_form(name, label, operation)
        for kind in _results(operation):
            if kind.dtype in ("fp32", "fp64"):
                yield Found("fp32", label, f"makes {kind}")
            if len(kind.shape) > HIGHEST_RANK:
                yield Found("rank", label, f"makes {kind}")
            if not kind.is_fixed:
                yield Found("dynamic-shape", label, f"makes {kind}")


def _of_form(name: str, label: str, operation: Any) -> Iterator[Found]:
    given = _type(operation.operands[0].type) if len(operation.operands) else None
    made = next(_results(operation), None)
    if name in SELECTING:
        yield Found("selection", label, f"makes {made}")
    if name == "cast" and given and made and given.dtype == "bool" and made.is_float:
        yield Found("boolean-cast", label, f"makes {made} from {given}")
    if name in DECODERS and given and given.dtype in ("int4", "uint4") and name == DECODERS[1]:
        yield Found("linear-int4", label, f"makes {made}")
    if name == DECODERS[0] and given and given.dtype == "uint3":
        yield Found("palette-3-bits", label, f"makes {made}")


def _is_infinite(constant: Any) -> bool:
    """Whether a small constant holds what becomes NaN in a softmax."""
    kind = next(_results(constant), None)
    if kind is None or kind.dtype not in ("fp16", "fp32") or not 0 < kind.count <= SMALL_CONSTANT:
        return False
    stored = Constant.of(constant)
    if stored is not None:
        values = stored.read().view(np.float16 if kind.dtype == "fp16" else np.float32)
    else:
        from coreai._compiler.ir import DenseElementsAttr

        value = constant.attributes["value"]
        if not DenseElementsAttr.isinstance(value):
            return False
        values = np.array(DenseElementsAttr(value))
    return bool(not (np.abs(values.astype(np.float64)) < LARGEST_FP16).all())
