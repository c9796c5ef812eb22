"""Apple's packages for Core AI, without their messages, or one sentence about why they are missing.

They exist for Linux on x86-64 with glibc 2.34 and for Apple silicon with macOS 26, Python 3.11 to
3.14.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Generator

from mdm_apple.errors import MissingPackageError, is_installed

PACKAGES = ("coreai", "coreai_torch")


def require_coreai() -> None:
    """Refuse if Core AI's packages are not installed; imports none of them."""
    if not all(map(is_installed, PACKAGES)):
        raise MissingPackageError(
            "coreai: needs Python 3.11 to 3.14 on Linux x86-64 (glibc 2.34) or a Mac with Apple "
            "silicon and macOS 26; pip install 'mdm-apple[coreai]', or leave out --format coreai."
        )


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Neither warnings about versions nor lines on stdout for the length of the block."""
    require_coreai()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
