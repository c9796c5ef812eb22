"""Lends PyTorch's fast matrix products to MLX on Linux.

The Linux wheel of MLX ships the reference BLAS, which is twenty times slower. PyTorch's library
exports the same symbols; loaded globally before MLX, it serves both. Without it everything works,
but slowly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def lend_blas() -> bool:
    """Load PyTorch's library for MLX; returns whether there was one to load."""
    found = importlib.util.find_spec("torch")
    if sys.platform != "linux" or found is None or found.origin is None:
        return False
    library = Path(found.origin).parent / "lib" / "libtorch_cpu.so"
    if not library.is_file():
        return False
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
