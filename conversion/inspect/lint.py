"""Finds what keeps a package off the Neural Engine, or makes it slow there.

The rules come from public guidance and other people's measurements; each rule names its source.
This project has measured none of them on a device, and only a Mac shows what Core ML decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal as OneOf

import numpy as np

from mdm_apple.config.types import NumpyArray

from ..execute import Package, TensorType
from ..execute.constants import literal_value
from ..execute.errors import FlexibleShapeError
from ..execute.graph import Function, Literal, Operation
from ..limits import HIGHEST_RANK, LARGEST_FP16, SHORT_AXIS, SMALL_CONSTANT

ANE_TRANSFORMERS = "Apple, Deploying Transformers on the Apple Neural Engine (2022)"
COREMLTOOLS = "coremltools documentation, typed execution and flexible inputs"
COREAI = "apple/coreai-models, Neural Engine rules"
ANE_GUIDE = "measurements on an M1 by third parties (ane-guide)"

Severity = OneOf["error", "cost"]

PADDED_FREELY = 1 << 14  # values; a vector of channels may have a singleton last axis
LARGE_BYTES = 2 << 20


@dataclass(frozen=True)
class Rule:
    """severity: an "error" keeps operations off the Neural Engine; a "cost" makes them slow."""

    name: str
    severity: Severity
    reason: str
    source: str


RULES = (
    Rule("rank", "error", f"tensors of more than {HIGHEST_RANK} axes are not supported", COREAI),
    Rule("dtype", "error", "only fp16 runs there; fp32 falls back to the CPU", COREMLTOOLS),
    Rule("dynamic-shape", "error", "shapes must be fixed when the model is compiled", COREMLTOOLS),
    Rule(
        "infinite-mask",
        "error",
        "an infinity, or the lowest number of fp16, becomes NaN in a softmax; -1e4 does not",
        ANE_TRANSFORMERS,
    ),
    Rule(
        "singleton-last-axis",
        "error",
        "the last axis is padded to 64 bytes, so a singleton one takes 32 times the memory",
        COREAI,
    ),
    Rule("linear", "error", "a 1x1 convolution is mapped, a linear layer is not", ANE_TRANSFORMERS),
    Rule("short-last-axis", "cost", "the last axis is padded to 64 bytes", COREAI),
    Rule("large-operand", "cost", "operands over 2 MB come from main memory", ANE_GUIDE),
)
_SEVERITY: dict[str, Severity] = {rule.name: rule.severity for rule in RULES}


@dataclass(frozen=True)
class Finding:
    """An operation that breaks a rule, and how."""

    rule: str
    severity: Severity
    operation: str
    detail: str


def lint(package: Package, only: str | None = None) -> list[Finding]:
    """All findings in a package, or in its function `only`, in order.

    Raises ExecutionError if the package is damaged.
    """
    found: list[Finding] = []
    for name in package.functions if only is None else (only,):
        try:
            function = package.function(name)
        except FlexibleShapeError as error:
            found.append(_finding("dynamic-shape", f"function {name!r}", str(error)))
            continue
        constants = _constants(package, function)
        for operation in function.operations:
            found += _findings(operation, constants)
    return found


def count_by_rule(findings: list[Finding]) -> dict[str, int]:
    """How often each rule was broken, in the order of RULES."""
    counts = Counter(f.rule for f in findings)
    return {rule.name: counts[rule.name] for rule in RULES if counts[rule.name]}


def _constants(package: Package, function: Function) -> dict[str, NumpyArray | None]:
    """Constants by name; None for those too large to read here."""
    out: dict[str, NumpyArray | None] = {}
    for operation in function.operations:
        if operation.is_constant:
            name, kind = operation.outputs[0]
            out[name] = None
            value = operation.inputs.get("val", (None,))[0]
            if isinstance(value, Literal) and kind.is_float and kind.count <= SMALL_CONSTANT:
                read = literal_value(value, package.weight_file)
                out[name] = None if isinstance(read, str) else np.asarray(read)
    return out


def _findings(operation: Operation, constants: dict[str, NumpyArray | None]) -> Iterator[Finding]:
    label = operation.label
    if operation.kind == "const":
        value = constants.get(operation.outputs[0][0])
        if value is not None and value.size and not np.abs(value).max() < LARGEST_FP16:
            yield _finding("infinite-mask", label, f"holds {value.reshape(-1)[0]:g}")
        return
    if operation.is_constant:
        return
    if operation.kind == "linear" or (
        operation.kind == "matmul" and _by_constant(operation, constants)
    ):
        yield _finding("linear", label, "multiplies by a stored matrix")
    for name, kind in operation.outputs:
        yield from (_finding(rule, label, f"{name} is {kind}") for rule in _broken_by(kind))


def _by_constant(operation: Operation, constants: dict[str, NumpyArray | None]) -> bool:
    return any(b in constants for b in operation.inputs.get("y", ()) if isinstance(b, str))


def _broken_by(kind: TensorType) -> Iterator[str]:
    """The rules that a computed value of this type breaks."""
    if len(kind.shape) > HIGHEST_RANK:
        yield "rank"
    if kind.dtype in ("fp32", "fp64"):
        yield "dtype"
    last = kind.shape[-1] if kind.shape else 0
    if last == 1 and len(kind.shape) > 1 and kind.count > PADDED_FREELY:
        yield "singleton-last-axis"
    if 1 < last < SHORT_AXIS and kind.count > PADDED_FREELY:
        yield "short-last-axis"
    if kind.bytes > LARGE_BYTES:
        yield "large-operand"


def _finding(rule: str, operation: str, detail: str) -> Finding:
    return Finding(rule, _SEVERITY[rule], operation, detail)
