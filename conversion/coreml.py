"""coremltools without its messages.

On Linux its import reports that Apple's runtime and tested versions of other packages are missing,
and every conversion draws four progress bars. None of this concerns the user here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Generator
from typing import Any

from mdm_apple.errors import require


@contextlib.contextmanager
def quiet_coremltools() -> Generator[Any]:
    """The coremltools module, silent for the length of the block. Raises MissingPackageError."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            require("coremltools")
            yield importlib.import_module("coremltools")
    finally:
        logger.setLevel(level)
