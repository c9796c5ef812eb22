"""The errors of the executor."""

from __future__ import annotations

from mdm_apple.errors import MdmError


class ExecutionError(MdmError):
    """A package that cannot be read or run, or inputs that do not fit it, in one sentence."""


class FlexibleShapeError(ExecutionError):
    """A program whose shapes are known only when it is called."""
