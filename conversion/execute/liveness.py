"""Finds the last use of each value of a function, and from it the memory a call needs."""

from __future__ import annotations

import os

from .errors import ExecutionError
from .graph import Function
from .opset import VIEWS


def last_uses(function: Function) -> dict[str, int]:
    """Index of the last operation that reads each value, or of the one that makes it if none does.

    Outputs of the function are left out, because they are kept.
    """
    last: dict[str, int] = {}
    for index, operation in enumerate(function.operations):
        for name in operation.reads:
            last[name] = index
        for name, _ in operation.outputs:
            last[name] = index
    stay = set(function.outputs)
    return {name: index for name, index in last.items() if name not in stay}


def peak_bytes(function: Function) -> int:
    """The most bytes that values in their declared types occupy at once, without constants.

    A view (a reshape, say) costs nothing and keeps its base alive.
    """
    owner = {name: name for name in function.inputs}
    size = {name: kind.bytes for name, kind in function.inputs.items()}
    for operation in function.operations:
        if operation.is_constant:
            continue
        seen = operation.inputs.get("x", (None,))[0] if operation.kind in VIEWS else None
        for name, kind in operation.outputs:
            owner[name] = owner[seen] if isinstance(seen, str) and seen in owner else name
            size.setdefault(owner[name], kind.bytes)

    last, end = last_uses(function), len(function.operations)
    until: dict[str, int] = {}
    for name, root in owner.items():
        until[root] = max(until.get(root, 0), last.get(name, end))
    freed: dict[int, int] = {}
    for root, index in until.items():
        freed[index] = freed.get(index, 0) + size[root]

    live = peak = sum(size[name] for name in function.inputs)
    for index, operation in enumerate(function.operations):
        live += sum(size[name] for name, _ in operation.outputs if owner.get(name) == name)
        peak = max(peak, live)
        live -= freed.get(index, 0)
    return peak


def check_memory(function: Function, peak: int) -> None:
    """Refuse a function too large for this machine, before anything is allocated.

    The executor keeps every value in 32 bits, so declared fp16 sizes count twice. Raises
    ExecutionError.
    """
    weights = sum(k.count * 4 for o in function.operations if o.is_constant for _, k in o.outputs)
    needed = weights + 2 * peak
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ExecutionError(
            f"function {function.name!r}: needs {needed / 1e9:.1f} GB to run, but this machine has "
            f"{available / 1e9:.1f} GB."
        )
