"""Safetensors files with numpy, written durably and read defensively.

Input and output: arrays by name, in order. The `safetensors` package decides whether a file is
intact. But it has no bfloat16 for numpy, copies what it reads, sorts what it writes, and neither
hashes nor syncs. The format is an 8-byte length, a JSON header and raw bytes, so this module makes
the views and writes the files itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from mdm_apple.config.strict_json import no_duplicates
from mdm_apple.config.types import NumpyArray
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import is_lfs_pointer

Storage = Literal["float32", "float16", "bfloat16"]

MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 200_000

_NUMPY_TYPES: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_FILE_TYPES = {np.dtype(t): name for name, t in _NUMPY_TYPES.items() if name != "BF16"}


class TensorFileError(MdmError):
    """A safetensors file that cannot be read or written; one sentence."""


@dataclass(frozen=True)
class Written:
    """Size and SHA-256 of a file as it was written."""

    size: int
    sha256: str


def write_tensors(
    path: Path, tensors: Mapping[str, NumpyArray], storage: Storage | None = None
) -> Written:
    """Write the arrays in order and sync the file; the caller chooses a temporary name.

    Args:
        storage: number type for the floating-point arrays; None keeps each one's own.

        Raises OSError if the disk refuses.
    """
    kinds = {n: (_file_type(n, a, storage), tuple(a.shape)) for n, a in tensors.items()}
    with path.open("wb") as file:
        out = _HashedFile(file)
        out.write(header_bytes(kinds, {"format": "pt"}))
        for name, array in tensors.items():
            out.write(_encoded(array, _file_type(name, array, storage)))
        return out.finish()


def header_bytes(
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    size: int | None = None,
) -> bytes:
    """Everything before the numbers, which follow in this order without gaps.

    Args:
        kinds: the format's name for the number type, and the shape, per name.
        size: fill with spaces up to this many bytes, which the format allows; None: up to 8.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (kind, shape) in kinds.items():
        end = offset + math.prod(shape) * np.dtype(_NUMPY_TYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(len(text) + -len(text) % 8 if size is None else size - 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Mapped:
    """An unconverted file: number type and read-only view per name; bfloat16 as uint16."""

    metadata: dict[str, object]
    kinds: dict[str, str]
    views: dict[str, NumpyArray]


def map_tensors(path: Path) -> Mapped:
    """The arrays of a file as stored, and its metadata; raises TensorFileError."""
    header, data = _open(path)
    metadata = header.pop("__metadata__", None) or {}
    if len(header) > MAX_TENSORS:
        raise TensorFileError(f"{path}: expected at most {MAX_TENSORS} tensors.")
    kinds = {name: entry["dtype"] for name, entry in header.items()}
    return Mapped(metadata, kinds, {n: _view(path, n, entry, data) for n, entry in header.items()})


def read_tensors(path: Path) -> dict[str, NumpyArray]:
    """All arrays, as read-only views of the mapped file; bfloat16 becomes float32 in memory.

    Raises TensorFileError unless the header describes exactly the bytes that follow it.
    """
    mapped = map_tensors(path)
    return {
        name: from_bfloat16(view) if mapped.kinds[name] == "BF16" else view
        for name, view in mapped.views.items()
    }


def to_bfloat16(array: NumpyArray) -> NumpyArray:
    """Upper halves of the float32 values, rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding could turn a NaN into infinity
    return np.where(np.isnan(array), quiet_nan, rounded).astype(np.uint16)


def from_bfloat16(halves: NumpyArray) -> NumpyArray:
    """The float32 values of bfloat16 bits held as uint16."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


class _HashedFile:
    """Bytes go to the file and into the hash; `finish` syncs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> Written:
        self._file.flush()
        os.fsync(self._file.fileno())
        return Written(self._size, self._hash.hexdigest())


def write_bytes(path: Path, data: bytes) -> Written:
    """Write and sync one small file."""
    with path.open("wb") as file:
        out = _HashedFile(file)
        out.write(data)
        return out.finish()


def _file_type(name: str, array: NumpyArray, storage: Storage | None) -> str:
    if storage and np.issubdtype(array.dtype, np.floating):
        return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[storage]
    kind = _FILE_TYPES.get(array.dtype.newbyteorder("<"))
    if kind is None:
        raise TensorFileError(f"{name}: arrays of {array.dtype} cannot be stored.")
    return kind


def _encoded(array: NumpyArray, kind: str) -> memoryview:
    if kind == "BF16":
        array = to_bfloat16(array)
    flat = np.ascontiguousarray(array, _NUMPY_TYPES[kind]).reshape(-1)
    return flat.view(np.uint8).data


def _open(path: Path) -> tuple[dict[str, Any], NumpyArray]:
    """The header and the mapped bytes behind it, after the package has checked that they match.

    The package opens files by name only, and a save may replace the file after its check.
    """
    try:
        while True:
            with path.open("rb") as file:
                opened = os.fstat(file.fileno())
                start = file.read(64)
                if is_lfs_pointer(start):
                    raise TensorFileError(
                        f"{path}: a Git LFS pointer, not the file itself; run git lfs pull."
                    )
                length = int.from_bytes(start[:8], "little")
                file.seek(8)
                if opened.st_size < 8 or length > min(opened.st_size - 8, MAX_HEADER_BYTES):
                    raise TensorFileError(
                        f"{path}: not a safetensors file, or cut off in its header."
                    )
                with safe_open(path, framework="numpy"):
                    pass
                if os.path.samestat(opened, path.stat()):
                    header = json.loads(file.read(length), object_pairs_hook=no_duplicates)
                    return header, _mapped(file, 8 + length, opened.st_size)
    except TensorFileError:
        raise
    except FileNotFoundError:
        raise TensorFileError(f"{path}: no such file.") from None
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be read ({error.strerror}).") from None
    except (SafetensorError, ValueError) as error:
        raise TensorFileError(
            f"{path}: a safetensors file that is cut off or damaged ({str(error)[:200]})."
        ) from None


def _mapped(file: BinaryIO, start: int, end: int) -> NumpyArray:
    if start == end:  # mapping an empty range is an error
        return np.empty(0, np.uint8)
    return np.memmap(file, np.uint8, "r", start)


def _view(path: Path, name: str, entry: dict[str, Any], data: NumpyArray) -> NumpyArray:
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in _NUMPY_TYPES:
        raise TensorFileError(f"{path}: {name[:80]!r} has the unknown number type {kind}.")
    if len(shape) > 16 or (not all(shape) and math.prod(n for n in shape if n) > 1 << 31):
        raise TensorFileError(f"{path}: {name[:80]!r} has a shape that numpy cannot hold.")
    return data[begin:end].view(_NUMPY_TYPES[kind]).reshape(shape)
