"""Apple's packages for Core AI, without their messages."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Generator

from mdm_apple.errors import MissingPackageError, require_coreai


@contextlib.contextmanager
def quiet(package: str) -> Generator[None]:
    """Neither warnings about versions nor lines on stdout for the length of the block.

    Args:
        package: what the block imports from.
    Raises MissingPackageError if it is missing, or cannot be loaded here.
    """
    require_coreai()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise cannot_be_loaded(str(error)) from None
        yield


def cannot_be_loaded(reason: str) -> MissingPackageError:
    """A refusal for packages that are there and do not work."""
    return MissingPackageError(
        f"coreai: Apple's packages cannot be loaded ({reason}); install them again, with pip "
        "install --force-reinstall 'mdm-apple[coreai]'."
    )
