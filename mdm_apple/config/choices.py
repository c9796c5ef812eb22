"""How a word that is none of the choices is refused."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from mdm_apple.errors import ConfigError


def one_of(name: str, value: object, choices: Any) -> None:
    """Raise ConfigError unless `value` is in the Literal `choices`; None, not given, passes."""
    known = [str(choice) for choice in get_args(choices)]
    if value is None or value in get_args(choices):
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}{hint}.")
