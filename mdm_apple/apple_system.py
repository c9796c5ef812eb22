"""Which of Apple's systems this is, if any."""

from __future__ import annotations

import os
import sys

from mdm_apple.errors import MdmError

# The kernel's release, since macOS tells a Python that was built before macOS 26 that it is 16.
# Darwin 25 is macOS 26.
FIRST_DARWIN_WITH_CORE_AI = 26


def core_ai_chooses_units() -> bool:
    """Whether the system has Core AI itself, so that compute units can be chosen.

    On older ones and on Linux, the runtime of Apple's wheels interprets packages on one thread.
    """
    return (
        sys.platform == "darwin" and major_version(os.uname().release) >= FIRST_DARWIN_WITH_CORE_AI
    )


def require_units() -> None:
    """Refuse compute units for Core AI where nothing chooses them. Raises MdmError."""
    if not core_ai_chooses_units():
        raise MdmError("compute-units: Core AI chooses units on macOS 27 only; leave them out.")


def major_version(text: str) -> int:
    """The first number of a version such as "27.1"; 0 if it has none."""
    first = text.split(".", maxsplit=1)[0]
    return int(first) if first.isdecimal() else 0
