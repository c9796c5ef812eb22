"""Binds an operation of a program to the function that executes it.

The function's annotations give the form of each parameter: a tensor, or a plain Python value. In a
program of fixed shapes plain values are constants; elsewhere they may come from the data.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Container, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from mdm_apple.config.strict_json import unknown_name

from .errors import ExecutionError
from .graph import BlobReference, Literal, Operation
from .values import to_tensor

Constants = Mapping[str, Tensor | str]


@dataclass(frozen=True)
class Computed:
    """The name of a value computed by an earlier operation."""

    name: str


Part = Computed | Tensor | str  # a computed value, a constant, a text


@dataclass(frozen=True)
class Late:
    """A plain value that is known only when the values of `parts` are computed."""

    parameter: str
    form: str
    parts: tuple[Part, ...]
    label: str


@dataclass(frozen=True)
class Binding:
    """`function` with its constant arguments and the names of the others.

    late: plain values that a `call` lacks until `settle` has found them.
    """

    function: Callable[..., Any]
    fixed: dict[str, Any]
    single: tuple[tuple[str, str], ...]  # parameter, name of a value
    several: tuple[tuple[str, tuple[Computed | Tensor, ...]], ...]
    late: tuple[Late, ...] = ()

    def settle(self, values: Mapping[str, Tensor]) -> Binding:
        """The same binding with its late values. Raises ExecutionError if they do not fit."""
        if not self.late:
            return self
        fixed = dict(self.fixed)
        for late in self.late:
            parts = tuple(values[p.name] if isinstance(p, Computed) else p for p in late.parts)
            fixed[late.parameter] = _plain(parts, late.form, late.label)
        return Binding(self.function, fixed, self.single, self.several)

    def call(self, values: Mapping[str, Tensor]) -> Any:
        arguments = dict(self.fixed)
        for parameter, name in self.single:
            arguments[parameter] = values[name]
        for parameter, parts in self.several:
            arguments[parameter] = tuple(
                values[p.name] if isinstance(p, Computed) else p for p in parts
            )
        return self.function(**arguments)

    def shares(self, result: Tensor, values: Mapping[str, Tensor]) -> bool:
        """Whether a result shares memory with one of the arguments, as a view does."""
        memory = result.untyped_storage().data_ptr()
        used = [v for v in self.fixed.values() if isinstance(v, Tensor)]
        used += [values[name] for _, name in self.single]
        used += [
            values[p.name] if isinstance(p, Computed) else p for _, ps in self.several for p in ps
        ]
        return any(t.untyped_storage().data_ptr() == memory for t in used)

    def shapes(self, values: Mapping[str, Tensor]) -> Hashable:
        """Everything that the shapes of the results depend on."""
        return (
            self.function,
            tuple((k, _shape(v) if isinstance(v, Tensor) else v) for k, v in self.fixed.items()),
            tuple((k, _shape(values[name])) for k, name in self.single),
            tuple(
                (k, tuple(_shape(p if isinstance(p, Tensor) else values[p.name]) for p in parts))
                for k, parts in self.several
            ),
        )

    def to_meta(self) -> Binding:
        """The same binding with constant tensors reduced to their shapes."""
        fixed = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in self.fixed.items()}
        several = tuple(
            (k, tuple(p.to("meta") if isinstance(p, Tensor) else p for p in parts))
            for k, parts in self.several
        )
        return Binding(self.function, fixed, self.single, several)


def _shape(value: Tensor) -> Hashable:
    return tuple(value.shape), value.dtype


def bind(operation: Operation, function: Callable[..., Any], constants: Constants) -> Binding:
    """Bind an operation to its function. Raises ExecutionError for parameters that do not fit."""
    forms = _forms(function)
    fixed: dict[str, Any] = {}
    single: list[tuple[str, str]] = []
    several: list[tuple[str, tuple[Computed | Tensor, ...]]] = []
    late: list[Late] = []
    for parameter, bindings in operation.inputs.items():
        label = f"{operation.label}: parameter {parameter!r}"
        if parameter not in forms:
            raise ExecutionError(
                f"{label} is not known to this executor. {unknown_name(parameter, forms)}"
            )
        form = forms[parameter][0]
        parts = tuple(_resolve(b, constants, label) for b in bindings)
        if form == "tensors":
            several.append((parameter, tuple(_numbers(p, label) for p in parts)))
        elif form == "tensor":
            value = _numbers(_only(parts, label), label)
            if isinstance(value, Computed):
                single.append((parameter, value.name))
            else:
                fixed[parameter] = value
        elif any(isinstance(part, Computed) for part in parts):
            late.append(Late(parameter, form, parts, label))
        else:
            fixed[parameter] = _plain(parts, form, label)
    for parameter, (_, required) in forms.items():
        if required and parameter not in operation.inputs:
            raise ExecutionError(f"{operation.label}: parameter {parameter!r} is missing.")
    return Binding(function, fixed, tuple(single), tuple(several), tuple(late))


def has_late_values(
    operation: Operation, function: Callable[..., Any], constants: Container[str]
) -> bool:
    """Whether a plain value of the operation is computed; `constants`: names of the others."""
    forms = _forms(function)
    return any(
        isinstance(part, str) and part not in constants
        for parameter, parts in operation.inputs.items()
        if forms.get(parameter, ("tensor",))[0] not in ("tensor", "tensors")
        for part in parts
    )


_FORMS: dict[Any, str] = {
    Tensor: "tensor",
    tuple[Tensor, ...]: "tensors",
    tuple[int, ...]: "ints",
    tuple[bool, ...]: "bools",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    int | float: "number",
}


@cache
def _forms(function: Callable[..., Any]) -> dict[str, tuple[str, bool]]:
    """For each parameter, the form its annotation asks for and whether it is required."""
    hints = typing.get_type_hints(function)
    out: dict[str, tuple[str, bool]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        given = [a for a in typing.get_args(hint) if a is not types.NoneType]
        if isinstance(hint, types.UnionType) and len(given) == 1:
            hint = given[0]
        out[name] = (_FORMS[hint], parameter.default is inspect.Parameter.empty)
    return out


def _resolve(binding: str | Literal, constants: Constants, label: str) -> Part:
    if isinstance(binding, str):
        return constants[binding] if binding in constants else Computed(binding)
    if isinstance(binding.value, BlobReference):
        raise ExecutionError(f"{label}: expected small constants in place, got a weight file.")
    return binding.value if isinstance(binding.value, str) else to_tensor(binding.value)


def _only(parts: tuple[Part, ...], label: str) -> Part:
    if len(parts) != 1:
        raise ExecutionError(f"{label}: expected one value, got {len(parts)}.")
    return parts[0]


def _numbers(part: Part, label: str) -> Computed | Tensor:
    if isinstance(part, str):
        raise ExecutionError(f"{label}: expected numbers, got the text {part!r}.")
    return part


def _plain(parts: tuple[Part, ...], form: str, label: str) -> Any:
    """Constants as the Python value named by `form`."""
    if form == "str":
        text = _only(parts, label)
        if not isinstance(text, str):
            raise ExecutionError(f"{label}: expected a text, got numbers.")
        return text
    flat: list[int | float | bool] = []
    for part in parts:
        value = _numbers(part, label)
        if isinstance(value, Computed):
            raise ExecutionError(f"{label}: expected a constant, got the value {value.name!r}.")
        flat += value.reshape(-1).numpy().tolist()
    if form in ("int", "ints") and not all(isinstance(n, int) for n in flat):
        raise ExecutionError(f"{label}: expected whole numbers, got {flat[:4]}.")
    if form == "ints":
        return tuple(flat)
    if form == "bools":
        return tuple(map(bool, flat))
    if len(flat) != 1:
        raise ExecutionError(f"{label}: expected one number, got {len(flat)}.")
    kinds: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "bool": bool}
    return kinds[form](flat[0]) if form in kinds else flat[0]
