"""A message between two processes: one line of JSON, then arrays as raw bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def write_message(to: IO[bytes], header: Header, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises BrokenPipeError if the reader has ended."""
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    to.write(json.dumps(header | {"arrays": listed}).encode() + b"\n")
    for array in arrays.values():
        to.write(np.ascontiguousarray(array).data if array.size else b"")
    to.flush()


def read_message(source: IO[bytes]) -> tuple[Header, Arrays] | None:
    """The next message, or None if the writer has ended, also in the middle of one."""
    line = source.readline()
    if not line.endswith(b"\n"):
        return None
    header: Header = json.loads(line)
    arrays: Arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        array = np.empty(tuple(shape), np.dtype(dtype))
        data = source.read(array.nbytes)
        if len(data) < array.nbytes:
            return None
        arrays[name] = np.frombuffer(data, array.dtype).reshape(array.shape)
    return header, arrays
