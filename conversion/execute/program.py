"""Executes one function of a package with torch on the CPU.

Loading decodes every constant once, binds each operation to the function that executes it, and does
a dry run on shapes alone, so that a program that cannot work is refused before anything is
computed. A call runs the bound steps in order and drops each value after its last use.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdm_apple.config.strict_json import unknown_name
from mdm_apple.config.types import ExecutorPrecision, NumpyArray

from .binding import Binding, bind
from .blob import BITS
from .constants import OpenFile, load_constants
from .errors import ExecutionError
from .graph import Function, Operation, TensorType
from .liveness import check_memory, last_uses, peak_bytes
from .opset import CONTROL_FLOW, EXACT, OPERATIONS
from .values import round_to_fp16, tensor_kind, to_array, to_tensor
from .watch import Watch


@dataclass(frozen=True)
class Step:
    """One bound operation, with the results to round to fp16 and the values to drop after it."""

    operation: Operation
    binding: Binding
    rounded: tuple[bool, ...]
    dropped: tuple[str, ...]


class Program:
    """A loaded function: call it with arrays by input name to get arrays by output name.

    inputs, outputs: TensorType by name. peak_bytes: see `liveness.peak_bytes`.
    """

    def __init__(
        self, function: Function, open_file: OpenFile, precision: ExecutorPrecision
    ) -> None:
        """Prefer `load_program`, which checks more. Raises ExecutionError."""
        self.name, self.inputs = function.name, dict(function.inputs)
        self.precision: ExecutorPrecision = precision
        self.outputs = output_types(function)
        self.peak_bytes = peak_bytes(function)
        check_memory(function, self.peak_bytes)
        constants = load_constants(function, open_file, precision == "fp16")
        self._steps = _plan(function, constants, precision == "fp16")
        self._constant_outputs = {
            name: value
            for name in function.outputs
            if isinstance(value := constants.get(name), Tensor)
        }
        self._dry_run()

    def __call__(
        self, inputs: Mapping[str, NumpyArray], watch: Watch | None = None
    ) -> dict[str, NumpyArray]:
        """Outputs for inputs of exactly the declared shapes; floating-point results are float32.

        Raises ExecutionError for a missing, unknown or wrongly shaped input.
        """
        with torch.inference_mode():
            values = self._constant_outputs | accept(self.inputs, inputs, self.precision)
            for step in self._steps:
                outputs = step.operation.outputs
                results = execute(step.operation, step.binding, values)
                for (name, _), rounded, value in zip(outputs, step.rounded, results, strict=True):
                    if rounded:
                        owned = not step.binding.shares(value, values)
                        values[name] = round_to_fp16(value, owned)
                    else:
                        values[name] = value
                    if watch is not None:
                        watch.see(step.operation.kind, name, values[name])
                for name in step.dropped:
                    del values[name]
            return {name: to_array(values[name], kind) for name, kind in self.outputs.items()}

    def _dry_run(self) -> None:
        """Run on torch's meta device and compare the shapes with the declared ones.

        Operations that repeat with the same shapes, as attention heads do, run once.
        """
        done: dict[Hashable, tuple[Tensor, ...]] = {}
        with torch.inference_mode(), torch.device("meta"):
            values = {n: torch.empty(k.shape, dtype=tensor_kind(k)) for n, k in self.inputs.items()}
            for step in self._steps:
                shapes = step.binding.shapes(values)
                if shapes not in done:
                    done[shapes] = execute(step.operation, step.binding.to_meta(), values)
                results = done[shapes]
                _compare_shapes(step.operation, results)
                names = [name for name, _ in step.operation.outputs]
                values.update(zip(names, results, strict=True))
                for name in step.dropped:
                    del values[name]


def accept(
    declared: Mapping[str, TensorType],
    inputs: Mapping[str, NumpyArray],
    precision: ExecutorPrecision,
) -> dict[str, Tensor]:
    """The given inputs as tensors by name.

    Raises ExecutionError for a missing, unknown or wrongly shaped input.
    """
    for name in inputs:
        if name not in declared:
            raise ExecutionError(f"input {name!r}: unknown. {unknown_name(name, declared)}")
    values: dict[str, Tensor] = {}
    for name, kind in declared.items():
        if name not in inputs:
            raise ExecutionError(f"input {name!r}: missing; expected {kind}.")
        array = np.asarray(inputs[name])
        fits = array.dtype.kind in ("fiub" if kind.is_float else "iub")
        if not kind.fits(array.shape) or not fits:
            raise ExecutionError(
                f"input {name!r}: expected {kind}, got {array.dtype}{list(array.shape)}."
            )
        value = to_tensor(array.astype(np.float32, copy=False) if kind.is_float else array)
        rounded = precision == "fp16" and kind.dtype == "fp16"
        values[name] = round_to_fp16(value, owned=False) if rounded else value
    return values


def output_types(function: Function) -> dict[str, TensorType]:
    """The type of each output of a function, by name."""
    types = dict(function.inputs)
    for operation in function.operations:
        types.update(operation.outputs)
    return {name: types[name] for name in function.outputs}


def refuse_unknown(function: Function) -> None:
    """Raise ExecutionError for types and operations that the executor does not know."""
    for name, kind in (function.inputs | output_types(function)).items():
        if BITS.get(kind.dtype, 0) < 8:
            raise ExecutionError(f"{name!r}: inputs and outputs cannot be of type {kind.dtype}.")
    _refuse_unknown_operations(function.operations)


def _refuse_unknown_operations(operations: Iterable[Operation]) -> None:
    for operation in operations:
        known = operation.kind in OPERATIONS or operation.kind in CONTROL_FLOW
        if not operation.is_constant and not known:
            raise ExecutionError(
                f"{operation.label}: the operation {operation.kind!r} is not supported by this "
                "executor; update mdm-apple or convert without it."
            )
        for block in operation.blocks:
            _refuse_unknown_operations(block.operations)


def _plan(
    function: Function, constants: Mapping[str, Tensor | str], fp16: bool
) -> tuple[Step, ...]:
    last = last_uses(function)
    steps: list[Step] = []
    for index, operation in enumerate(function.operations):
        if operation.is_constant:
            continue
        binding = bind(operation, OPERATIONS[operation.kind], constants)
        inexact = fp16 and operation.kind not in EXACT
        rounded = tuple(inexact and kind.dtype == "fp16" for _, kind in operation.outputs)
        present = operation.reads | {name for name, _ in operation.outputs}
        dropped = tuple(n for n in present if last.get(n) == index and n not in constants)
        steps.append(Step(operation, binding, rounded, dropped))
    return tuple(steps)


def execute(
    operation: Operation, binding: Binding, values: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    try:
        result = binding.call(values)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ExecutionError(f"{operation.label}: cannot be executed ({reason}).") from None
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _compare_shapes(operation: Operation, results: tuple[Tensor, ...]) -> None:
    declared = [(kind.shape, tensor_kind(kind)) for _, kind in operation.outputs]
    computed = [(tuple(r.shape), r.dtype) for r in results]
    if declared != computed:
        want, got = (
            ", ".join(f"{dtype} {list(shape)}" for shape, dtype in each)
            for each in (declared, computed)
        )
        raise ExecutionError(
            f"{operation.label}: declares {want} but computes {got}; the package is damaged."
        )
