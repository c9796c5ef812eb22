"""Chooses how a function is executed: planned when it is loaded, or as it goes."""

from __future__ import annotations

from mdm_apple.config.types import ExecutorPrecision

from .binding import has_late_values
from .constants import OpenFile
from .flexible import FlexibleProgram
from .graph import Function
from .opset import OPERATIONS
from .program import Program, refuse_unknown


def load_program(
    function: Function, open_file: OpenFile, precision: ExecutorPrecision
) -> Program | FlexibleProgram:
    """A `Program` if all shapes are known now, else a `FlexibleProgram`. Raises ExecutionError."""
    refuse_unknown(function)
    if is_planned(function):
        return Program(function, open_file, precision)
    return FlexibleProgram(function, open_file, precision)


def is_planned(function: Function) -> bool:
    """Whether every operation and every shape of a call is known before it."""
    if function.first_flexible is not None:
        return False
    constants = {n for o in function.operations if o.is_constant for n, _ in o.outputs}
    return not any(
        operation.blocks or has_late_values(operation, OPERATIONS[operation.kind], constants)
        for operation in function.operations
        if not operation.is_constant
    )
