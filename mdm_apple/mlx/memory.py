"""MLX's memory limit and its peak use, in GB of 10**9 bytes."""

from __future__ import annotations

import mlx.core as mx

GB = 10**9


def limit_memory(gigabytes: float) -> None:
    """Make MLX wait and free its cache before it exceeds the limit."""
    mx.set_memory_limit(int(gigabytes * GB))
    mx.set_cache_limit(int(gigabytes * GB / 4))


def memory_limit() -> float:
    """The current limit; by default MLX chooses one for the machine."""
    limit = mx.set_memory_limit(0)
    mx.set_memory_limit(limit)
    return limit / GB


def peak_memory() -> float:
    """The most memory in use at any time so far."""
    return mx.get_peak_memory() / GB
