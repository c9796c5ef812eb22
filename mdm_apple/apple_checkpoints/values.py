"""Values from Apple's configuration files, read by name with their types checked.

Those files mix text, lists and numbers ("2,3", [2, 3], 2); here each becomes one type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from mdm_apple.config.strict_json import unknown_name
from mdm_apple.errors import ConfigError

Choice = TypeVar("Choice", bound=str)

_WHOLE = re.compile(r"-?[0-9]{1,9}")


class Fields:
    """One mapping of Apple's fields: each is read by name and checked; the rest is reported."""

    def __init__(self, fields: Mapping[str, Any], where: str, notices: list[str] | None) -> None:
        self.where, self._fields, self._notices = where, fields, notices
        self._known: set[str] = set()

    def value(self, name: str, default: Any) -> Any:
        """The field, or `default` if it is absent."""
        self._known.add(name)
        return self._fields.get(name, default)

    def given(self, name: str) -> bool:
        """Whether the file has the field."""
        return name in self._fields

    def discard(self, *names: str) -> None:
        """Mark fields that need no conversion as known."""
        self._known.update(names)

    def notice(self, sentence: str) -> None:
        if self._notices is None:
            raise ConfigError(sentence)
        self._notices.append(sentence)

    def close(self, *, refuse: bool = True) -> None:
        """Refuse or report every unread field, most likely a misspelt setting."""
        for name in self._fields:
            if name not in self._known:
                hint = unknown_name(str(name), self._known)
                hint = f" {hint}" if hint.startswith("Did") else ""
                sentence = f"{self.where}: unknown key {str(name)[:60]!r} is not used.{hint}"
                if refuse:
                    raise ConfigError(sentence)
                self.notice(sentence)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        value = self.value(name, None)
        if value is not None and not isinstance(value, Mapping):
            raise self._unexpected(name, "a group of fields", value)
        return value  # pyright: ignore[reportUnknownVariableType]

    def section(self, name: str) -> Fields:
        return Fields(self.mapping(name) or {}, f"{self.where}.{name}", self._notices)

    def integer(self, name: str, default: int) -> int:
        value = self.value(name, default)
        if not _is_whole(value):
            raise self._unexpected(name, "a whole number", value)
        return value

    def dimension(self, name: str) -> int | None:
        """A width; -1, 0 and null all mean none."""
        value = self.value(name, None)
        if value is None:
            return None
        return self.integer(name, -1) if self.integer(name, -1) > 0 else None

    def number(self, name: str, default: float) -> float:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._unexpected(name, "a number", value)
        if abs(value) > 1e30 or not math.isfinite(value):
            raise self._unexpected(name, "a finite number", value)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self.value(name, None) is None else self.number(name, 0.0)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name, default)
        if value not in (True, False, 0, 1):
            raise self._unexpected(name, "true or false", value)
        return bool(value)

    def text(self, name: str, default: str) -> str:
        value = self.value(name, None)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._unexpected(name, "text in quotes", value)
        return value

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers, given as a list, as text with commas, or as one number."""
        value = self.value(name, default)
        if value is None:
            return ()
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",")] if value.strip() else []
            if not all(_WHOLE.fullmatch(part) for part in parts):
                raise self._unexpected(name, "whole numbers separated by commas", value)
            value = [int(part) for part in parts]
        if _is_whole(value):
            value = [value]
        if not isinstance(value, (list, tuple)) or len(value) > 64:  # pyright: ignore[reportUnknownArgumentType]
            raise self._unexpected(name, "a list of at most 64 whole numbers", value)
        items: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        if not all(map(_is_whole, items)):
            raise self._unexpected(name, "a list of whole numbers", value)
        return tuple(item for item in items if isinstance(item, int))

    def ratio(self, name: str, levels: int) -> tuple[float, ...] | None:
        """Numbers separated by colons, one per level, such as '16:4:1'."""
        text = self.text(name, "")
        if text in ("", "None"):
            return None
        try:
            parts = tuple(float(part) for part in text.split(":"))
        except ValueError:
            parts = ()
        if len(parts) != levels or not all(math.isfinite(p) and p >= 0 for p in parts):
            raise self._unexpected(name, f"{levels} numbers separated by colons", text)
        return parts

    def choice(self, name: str, options: dict[str, Choice], default: str) -> Choice:
        value = self.value(name, default)
        if not isinstance(value, str) or value.upper() not in options:
            raise self._unexpected(name, f"one of {', '.join(options)}", value)
        return options[value.upper()]

    def _unexpected(self, name: str, expected: str, value: object) -> ConfigError:
        return ConfigError(f"{self.where}.{name}: expected {expected}, got {_shown(value)}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64


def _shown(value: object) -> str:
    try:
        return repr(value)[:60]
    except (ValueError, RecursionError):  # Python refuses to print numbers with thousands of digits
        return "a huge number"
