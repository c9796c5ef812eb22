"""Matryoshka diffusion models from training to a phone.

import mdm_apple as mdm

mdm.load("box:student")("red heart", seed=7).save("heart.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mdm_apple.version import __version__

if TYPE_CHECKING:
    from mdm_apple.api import (
        check_data,
        convert,
        distill,
        evaluate,
        index_shards,
        load,
        pack_shards,
        palettize,
        train,
        verify,
    )

__all__ = [
    "__version__",
    "check_data",
    "convert",
    "distill",
    "evaluate",
    "index_shards",
    "load",
    "pack_shards",
    "palettize",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import the functions of `api` on first use, which keeps importing the package cheap."""
    if name in __all__:
        return getattr(importlib.import_module("mdm_apple.api"), name)
    raise AttributeError(f"module 'mdm_apple' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
