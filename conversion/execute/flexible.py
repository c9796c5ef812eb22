"""Executes a program whose shapes are known only when it is called, or that has loops or branches.

Every operation runs on shapes alone before it computes, so that a result too large for this machine
is refused before it is allocated, and every result is compared with the declared type. Otherwise it
is `program.Program`, which does all that once, when a program of fixed shapes is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdm_apple.config.types import ExecutorPrecision, NumpyArray

from .binding import Binding, bind
from .constants import OpenFile, load_constants
from .errors import ExecutionError
from .graph import Block, Function, Operation, TensorType
from .liveness import check_memory
from .opset import CONTROL_FLOW, EXACT, OPERATIONS
from .program import accept, execute, output_types
from .values import round_to_fp16, tensor_kind, to_array
from .watch import Watch

MAX_ROUNDS = 1_000_000  # of a loop


@dataclass(frozen=True)
class _Step:
    """One operation: bound to its function, or with the blocks that it runs."""

    operation: Operation
    binding: Binding | None
    blocks: tuple[_Plan, ...]
    rounded: tuple[bool, ...]
    dropped: tuple[str, ...]  # values that nothing reads after it


@dataclass(frozen=True)
class _Plan:
    block: Block
    steps: tuple[_Step, ...]


@dataclass
class _Live:
    """The values of a call that are still needed, and the bytes that they occupy."""

    constants: Mapping[str, Tensor | str]
    limit: int
    values: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    bytes: int = 0

    def put(self, name: str, value: Tensor) -> None:
        self.drop(name)
        self.values[name] = value
        self.bytes += value.numel() * value.itemsize

    def drop(self, name: str) -> None:
        value = self.values.pop(name, None)
        if value is not None:
            self.bytes -= value.numel() * value.itemsize

    def get(self, name: str, label: str) -> Tensor:
        value = self.values.get(name, self.constants.get(name))
        if not isinstance(value, Tensor):
            raise ExecutionError(f"{label}: {name!r} is not a value here; the package is damaged.")
        return value


class FlexibleProgram:
    """A loaded function of flexible shapes: call it like a `Program`.

    inputs, outputs: TensorType by name, with UNKNOWN axes.
    """

    def __init__(
        self, function: Function, open_file: OpenFile, precision: ExecutorPrecision
    ) -> None:
        """Prefer `load_program`, which checks more. Raises ExecutionError."""
        self.name, self.inputs = function.name, dict(function.inputs)
        self.precision: ExecutorPrecision = precision
        self.outputs = output_types(function)
        check_memory(function, 0)
        self._constants = load_constants(function, open_file, precision == "fp16")
        inputs = tuple(function.inputs.items())
        block = Block(inputs, function.operations, function.outputs)
        self._plan = _planned(block, self._constants, precision == "fp16")
        self._sizes: dict[Hashable, int] = {}  # of results, by function and shapes
        self._memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def __call__(
        self, inputs: Mapping[str, NumpyArray], watch: Watch | None = None
    ) -> dict[str, NumpyArray]:
        """Outputs for inputs of the declared rank and sizes; floating-point results are float32.

        Raises ExecutionError for inputs that do not fit, or values too large for this machine.
        """
        accepted = accept(self.inputs, inputs, self.precision)
        live = _Live(self._constants, self._memory)
        with torch.inference_mode():
            arguments = [accepted[name] for name in self.inputs]
            results = self._run(self._plan, arguments, live, watch, f"function {self.name!r}")
            named = zip(self.outputs.items(), results, strict=True)
            return {name: to_array(value, kind) for (name, kind), value in named}

    def _run(
        self,
        plan: _Plan,
        arguments: Sequence[Tensor],
        live: _Live,
        watch: Watch | None,
        label: str,
    ) -> list[Tensor]:
        """The results of a block for its arguments; leaves no value of the block behind."""
        for (name, kind), value in zip(plan.block.inputs, arguments, strict=True):
            _compare(label, [kind], [value])
            live.put(name, value)
        for step in plan.steps:
            self._step(step, live, watch)
        results = [live.get(name, label) for name in plan.block.outputs]
        for name in plan.block.names:
            live.drop(name)
        return results

    def _step(self, step: _Step, live: _Live, watch: Watch | None) -> None:
        operation = step.operation
        if step.binding is None:
            results = self._controlled(step, live, watch)
        else:
            settled = step.binding.settle(live.values)
            self._check_size(operation, settled, live)
            results = list(execute(operation, settled, live.values))
        _compare(operation.label, [kind for _, kind in operation.outputs], results)
        for (name, _), rounded, value in zip(operation.outputs, step.rounded, results, strict=True):
            live.put(name, round_to_fp16(value, owned=False) if rounded else value)
            if watch is not None and step.binding is not None:
                watch.see(operation.kind, name, live.values[name])
        for name in step.dropped:
            live.drop(name)

    def _controlled(self, step: _Step, live: _Live, watch: Watch | None) -> list[Tensor]:
        """The results of a loop or of a branch."""
        operation, label = step.operation, step.operation.label
        if operation.kind == "cond":
            wanted, otherwise = step.blocks
            chosen = wanted if _truth(_value(operation, "pred", live), label) else otherwise
            return self._run(chosen, (), live, watch, label)
        condition, body = step.blocks
        carried = [live.get(_name(b, label), label) for b in operation.inputs["loop_vars"]]
        for _ in range(MAX_ROUNDS):
            (goes_on,) = self._run(condition, carried, live, None, label)
            if not _truth(goes_on, label):
                return carried
            carried = self._run(body, carried, live, watch, label)
        raise ExecutionError(f"{label}: did not end after {MAX_ROUNDS:,} rounds.")

    def _check_size(self, operation: Operation, binding: Binding, live: _Live) -> None:
        key = binding.shapes(live.values)
        if key not in self._sizes:
            self._sizes[key] = _result_bytes(binding, live.values)
        needed = live.bytes + self._sizes[key]
        if needed > live.limit:
            raise ExecutionError(
                f"{operation.label}: needs {needed / 1e9:.1f} GB to run, but this machine has "
                f"{live.limit / 1e9:.1f} GB."
            )


def _planned(block: Block, constants: Mapping[str, Tensor | str], fp16: bool) -> _Plan:
    last = {name: index for index, o in enumerate(block.operations) for name in o.reads}
    steps: list[_Step] = []
    for index, operation in enumerate(block.operations):
        if operation.is_constant:
            continue
        controls = operation.kind in CONTROL_FLOW
        if controls:
            _check_blocks(operation)
        elif operation.blocks:
            raise ExecutionError(f"{operation.label}: has blocks; the package is damaged.")
        outputs = [name for name, _ in operation.outputs]
        present = block.names & (operation.reads | set(outputs))
        inexact = fp16 and operation.kind not in EXACT and not controls
        steps.append(
            _Step(
                operation,
                None if controls else bind(operation, OPERATIONS[operation.kind], constants),
                tuple(_planned(inner, constants, fp16) for inner in operation.blocks),
                tuple(inexact and kind.dtype == "fp16" for _, kind in operation.outputs),
                tuple(n for n in present if last.get(n, index) == index and n not in block.outputs),
            )
        )
    return _Plan(block, tuple(steps))


def _check_blocks(operation: Operation) -> None:
    """Refuse a loop or a branch whose blocks do not fit its values."""
    counts = [(len(block.inputs), len(block.outputs)) for block in operation.blocks]
    results = len(operation.outputs)
    if operation.kind == "cond":
        expected, fits = [(0, results), (0, results)], "pred" in operation.inputs
    else:
        expected = [(results, 1), (results, results)]
        fits = len(operation.inputs.get("loop_vars", ())) == results
    if counts != expected or not fits:
        raise ExecutionError(
            f"{operation.label}: its blocks take and return other numbers of values than it does; "
            "the package is damaged."
        )


def _value(operation: Operation, parameter: str, live: _Live) -> Tensor:
    parts = operation.inputs[parameter]
    return live.get(_name(parts[0] if parts else "", operation.label), operation.label)


def _name(part: object, label: str) -> str:
    if not isinstance(part, str):
        raise ExecutionError(f"{label}: expected the name of a value, got a constant in place.")
    return part


def _truth(value: Tensor, label: str) -> bool:
    if value.numel() != 1:
        raise ExecutionError(f"{label}: expected one truth value, got {value.numel()}.")
    return bool(value.item())


def _result_bytes(binding: Binding, values: Mapping[str, Tensor]) -> int:
    """Bytes of the results, from the shapes of the arguments; 0 if shapes alone do not tell."""
    names = {name for _, name in binding.single}
    names |= {p.name for _, ps in binding.several for p in ps if not isinstance(p, Tensor)}
    try:
        with torch.device("meta"):
            result = binding.to_meta().call({name: values[name].to("meta") for name in names})
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError):
        return 0  # the operation itself says what is wrong, or has a result as large as the data
    results = (result,) if isinstance(result, Tensor) else tuple(result)
    return sum(r.numel() * r.itemsize for r in results)


def _compare(label: str, declared: Sequence[TensorType], results: Sequence[Tensor]) -> None:
    if len(declared) != len(results):
        raise ExecutionError(
            f"{label}: declares {len(declared)} results but computes {len(results)}; the package "
            "is damaged."
        )
    for kind, value in zip(declared, results, strict=True):
        if not kind.fits(tuple(value.shape)) or value.dtype != tensor_kind(kind):
            raise ExecutionError(
                f"{label}: declares {kind} but computes {str(value.dtype).removeprefix('torch.')}"
                f"{list(value.shape)}; the inputs do not fit, or the package is damaged."
            )
