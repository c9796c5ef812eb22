"""Requests to Linux and its C library about memory pages; a no-op elsewhere.

The first touch of 128 MiB in pages of 4 KiB can cost as much as convolving the image written there.
PyTorch asks for pages of 2 MiB only if THP_MEM_ALLOC_ENABLE=1 is set before it starts. Also, the C
library keeps the memory that packing frees between the remaining weights.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

WORTHWHILE = 1 << 25  # bytes: from this size on, malloc takes fresh pages from the system each time


def empty_image(batch: int, channels: int, height: int, width: int) -> Tensor:
    """(B, C, H, W) in fp32 on the CPU, channels last, uninitialised; in large pages if possible."""
    out = torch.empty(batch, height, width, channels, dtype=torch.float32, device="cpu")
    if out.nbytes >= WORTHWHILE and sys.platform == "linux":
        start = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = out.data_ptr() + out.nbytes - start
        # advice only: if refused, the memory is as good but slower to touch
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE
        )
    return out.permute(0, 3, 1, 2)


def give_back() -> None:
    """Return free memory between allocations to the system, if the C library is glibc."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
