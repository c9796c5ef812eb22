"""Where files lie that can be made again: the system's folder for them, for this user."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache(what: str) -> Path:
    """The folder for one kind of file; it may not exist yet.

    `XDG_CACHE_HOME` is where to look if it is set; else ~/Library/Caches on a Mac, ~/.cache
    elsewhere.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    usual = ("Library", "Caches") if sys.platform == "darwin" else (".cache",)
    # a relative path counts as none, as its standard says
    place = Path(home) if Path(home).is_absolute() else Path.home().joinpath(*usual)
    return place / "mdm-apple" / what
