"""Lends MLX the fast matrix products of PyTorch on Linux.

The Linux wheel of MLX brings the reference BLAS, twenty times slower. PyTorch's library exports the
same symbols; loaded globally before MLX it serves both. Without it everything works, slowly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def lend_blas() -> bool:
    """Whether there was something to lend."""
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
