"""Dataclasses to JSON and back: unknown, duplicate, missing and ill-typed keys are refused.

Input: JSON text, or plain values. Output: the dataclass, or one sentence with the offending key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from mdm_apple.errors import ConfigError

T = TypeVar("T")

# Metadata of a field that is younger than the files of its dataclass. It is written only where it
# differs from its default, so that files without it keep their bytes.
ADDED_LATER = {"added_later": True}


def as_values(config: Any) -> dict[str, Any]:
    """A dataclass as plain values: every field but those `ADDED_LATER` that have their default."""
    used = later_fields(config)
    return {
        field.name: _as_value(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if "added_later" not in field.metadata or field.name in used
    }


def later_fields(config: Any) -> list[str]:
    """Names of the fields of a dataclass that are `ADDED_LATER` and differ from their default."""
    return [
        field.name
        for field in dataclasses.fields(config)
        if "added_later" in field.metadata and getattr(config, field.name) != field.default
    ]


def _as_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_values(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_as_value(v) for v in typing.cast("tuple[Any, ...]", value))
    if isinstance(value, dict):
        return {k: _as_value(v) for k, v in typing.cast("dict[Any, Any]", value).items()}
    return value


def to_json(config: Any) -> str:
    """A dataclass as indented JSON with a trailing newline; see `as_values`."""
    return json.dumps(as_values(config), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[T], text: str, where: str = "config") -> T:
    """Parse strict JSON into the dataclass `kind`; raises ConfigError with the offending key."""
    try:
        data = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=_no_constant)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error}).") from None
    return from_dict(kind, data, where)


def from_dict(kind: type[T], data: object, where: str = "config") -> T:
    """Build the dataclass `kind` from plain JSON values, refusing anything unknown or missing."""
    try:
        return typing.cast(T, _convert(kind, data, where))
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply for a configuration.") from None


def read_config(kind: type[T], path: Path, max_bytes: int = 1 << 20) -> T:
    """Read the dataclass `kind` from a file; raises ConfigError for anything else."""
    try:
        if path.stat().st_size > max_bytes:
            raise ConfigError(f"{path}: expected a file of at most {max_bytes >> 20} MiB.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    return from_json(kind, text, str(path))


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file from elsewhere, with unchecked keys; raises ConfigError."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file.")
        if path.stat().st_size > max_bytes:
            raise ConfigError(f"{path}: expected at most {max_bytes >> 10} KiB.")
        data: object = json.loads(path.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object.")
    return typing.cast(dict[str, Any], data)


def plain_values(value: Any) -> Any:
    """What JSON can hold of a value: keys as text, tuples as lists, as text what is not finite."""
    if isinstance(value, dict):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads, as object_pairs_hook; raises ConfigError with the key."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ConfigError(f"key {key!r} appears twice; keep one.")
        seen[key] = value
    return seen


def unknown_name(name: str, known: typing.Iterable[str]) -> str:
    """' Did you mean ...?' or the list of known names, as the end of a refusal."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(options)}."


def _no_constant(name: str) -> float:
    raise ConfigError(f"{name} is not a number that JSON allows.")


def _convert(kind: Any, value: object, where: str) -> object:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return _convert(inner[0], value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where}: expected one of {', '.join(map(str, args))}, got {value!r}."
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {_shown(value)}.")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, got {_shown(value)}.")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, where)
    return _convert_scalar(kind, value, where)


def _convert_dataclass(kind: Any, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected an object, got {_shown(value)}.")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}. {unknown_name(str(key), fields)}")
    for name, spec in fields.items():
        required = (
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        )
        if required and name not in value:
            raise ConfigError(f"{where}: key {name!r} is missing.")
    built = {k: _convert(hints[k], v, f"{where}.{k}") for k, v in value.items()}
    try:
        return kind(**built)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert_scalar(kind: Any, value: object, where: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: expected {_NAMES[kind]}, got {_shown(value)}.")
    if isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(f"{where}: expected {_NAMES[kind]}, got {_shown(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value}.")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
