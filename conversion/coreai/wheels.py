"""Apple's packages for Core AI, without their messages."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Generator

from mdm_apple.errors import require_coreai


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Neither warnings about versions nor lines on stdout for the length of the block."""
    require_coreai()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
