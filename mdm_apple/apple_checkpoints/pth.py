"""Reads torch.save files without torch: the zip, with its storages as views of the mapped file.

Input: a .pth in the zip format of PyTorch 1.6 and later. Output: named tensors that stay on disk
until they are needed, and the names of everything skipped. Nothing is unpickled (see pickle_walk),
and every size is checked against the file before any byte is used.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from mdm_apple.apple_checkpoints.pickle_walk import (
    MAX_PICKLE_BYTES,
    Opaque,
    PthError,
    TensorRef,
    walk_pickle,
)
from mdm_apple.config.types import NumpyArray
from mdm_apple.storage.files import is_lfs_pointer

MAX_DIRECTORY_BYTES = MAX_PICKLE_BYTES  # an entry takes less space there than in the description
_LOCAL = struct.Struct("<4s22x2H")  # header before an entry: mark, length of name, of extra

_ITEM_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 starts with this


@dataclass(frozen=True, eq=False)
class PthTensor:
    """A tensor inside a .pth file, read when `numpy` is called."""

    shape: tuple[int, ...]
    dtype: str  # a torch name: float32, bfloat16, ...
    _file: NumpyArray = field(repr=False)
    _start: int  # byte of the first element
    _strides: tuple[int, ...]  # in bytes
    _order: str  # "<" or ">"

    def numpy(self) -> NumpyArray:
        """The values: a read-only view of the mapped file, or float32 converted from bfloat16."""
        if 0 in self.shape:
            return np.zeros(self.shape, self._kind.newbyteorder("="))
        view: NumpyArray = np.ndarray(
            self.shape, self._kind, cast(Any, self._file), self._start, self._strides
        )
        if self.dtype == "bfloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "bool":
            return view != 0
        return view if view.dtype.isnative else view.astype(view.dtype.newbyteorder("="))

    @property
    def _kind(self) -> np.dtype[Any]:
        name = {"bfloat16": "uint16", "bool": "uint8"}.get(self.dtype, self.dtype)
        return np.dtype(name).newbyteorder(self._order)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PthReport:
    """What a .pth file holds.

    state_dict: tensors by name. other: plain numbers and texts beside it, such as `batch_num`.
    skipped: names of everything else; their contents were not read.
    """

    state_dict: dict[str, PthTensor]
    skipped: tuple[str, ...]
    other: dict[str, int | float | str | bool | None]


def read_pth(path: Path) -> PthReport:
    """List the tensors of a file that holds a state dict, bare or under the key `state_dict`.

    Raises PthError with one sentence if the file is damaged, hostile, or in another format.
    """
    try:
        archive = _Archive(path)
        return _report(archive, walk_pickle(archive.description()))
    except PthError as error:
        raise PthError(f"{path}: {error}") from None


def check_zip(path: Path) -> None:
    """Raise PthError unless the file is a complete archive from torch.save; reads no tensors."""
    try:
        _Archive(path)
    except PthError as error:
        raise PthError(f"{path}: {error}") from None


def _report(archive: _Archive, data: object) -> PthReport:
    if not isinstance(data, dict):
        raise PthError("expected a dictionary of tensors, a state dict.")
    outer = cast("dict[object, object]", data)
    inner = outer.get("state_dict")
    tensors = cast("dict[object, object]", inner) if isinstance(inner, dict) else outer
    state: dict[str, PthTensor] = {}
    skipped: list[str] = []
    for name, value in tensors.items():
        if isinstance(value, TensorRef) and isinstance(name, str):
            state[name] = archive.tensor(name, value)
        elif tensors is not outer:
            skipped.append(f"state_dict.{name}")
    other: dict[str, int | float | str | bool | None] = {}
    for name, value in outer.items():
        if isinstance(name, str) and _is_small(value):
            other[name] = cast("int | float | str | None", value)
        elif value is not tensors and name not in state:
            skipped.append(f"{name} ({value.name})" if isinstance(value, Opaque) else str(name))
    if not state:
        raise PthError("holds no tensors; expected a state dict, bare or under 'state_dict'.")
    return PthReport(state, tuple(skipped), other)


def _is_small(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 1000
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, float)


def _what_else(head: bytes) -> str:
    """The reason to refuse a file that is not a zip, and the way out."""
    if not head:
        return "the file is empty; download it again."
    if head.startswith(_OLD_FORMAT) or head[257:262] == b"ustar":
        return (
            "written in the format before PyTorch 1.6, which only unpickling can read; if you "
            "trust its source, convert it with torch: torch.save(torch.load(OLD), NEW)."
        )
    if head[8:9] == b"{":
        return "looks like a safetensors file; expected a .pth written by torch.save."
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a checkpoint; download it again."
    return "expected a zip archive written by torch.save."


class _Archive:
    """A mapped, uncompressed zip; the place of every entry is checked."""

    def __init__(self, path: Path) -> None:
        try:
            with _SmallReads(path) as file:
                head = file.read(512)
                if not head.startswith(b"PK\x03\x04"):
                    raise PthError(_what_else(head))
                self._file: NumpyArray = np.memmap(cast(Any, file), np.uint8, "r")
                self._places = _places(file, self._file)
        except FileNotFoundError:
            raise PthError("no such file.") from None
        except OSError as error:
            raise PthError(f"cannot be read ({error.strerror}).") from None
        roots = [name[: -len("/data.pkl")] for name in self._places if name.endswith("/data.pkl")]
        roots = [root for root in roots if "/" not in root]
        if len(roots) != 1:
            raise PthError("expected exactly one data.pkl in the archive, as torch.save writes.")
        self._root = roots[0]
        self._order = self._byte_order()

    def description(self) -> bytes:
        """The pickle that describes the tensors."""
        return self._read("data.pkl", MAX_PICKLE_BYTES)

    def tensor(self, name: str, ref: TensorRef) -> PthTensor:
        """The tensor as a view, after a check that it lies inside its storage."""
        storage, item = ref.storage, _ITEM_BYTES[ref.storage.dtype]
        start, size = self._find(f"data/{storage.key}")
        if size != storage.count * item:
            raise PthError(
                f"{name!r}: its storage should be {storage.count * item} bytes, but the archive "
                f"holds {size}."
            )
        count = math.prod(ref.shape)
        reach = sum((n - 1) * stride for n, stride in zip(ref.shape, ref.strides, strict=True))
        last = ref.offset + reach if count else 0
        if count > storage.count or last >= max(storage.count, 1):
            raise PthError(f"{name!r}: reaches outside its storage of {storage.count} elements.")
        if not count and math.prod(n for n in ref.shape if n) > 1 << 31:  # numpy refuses these
            raise PthError(f"{name!r}: has an impossible shape.")
        return PthTensor(
            ref.shape,
            storage.dtype,
            self._file,
            start + ref.offset * item,
            tuple(stride * item for stride in ref.strides),
            self._order,
        )

    def _byte_order(self) -> str:
        if f"{self._root}/byteorder" not in self._places:
            return "<"  # older files have no such entry and are little-endian
        order = self._read("byteorder", 16)
        if order not in (b"little", b"big"):
            raise PthError("its byteorder entry says neither little nor big.")
        return "<" if order == b"little" else ">"

    def _read(self, name: str, limit: int) -> bytes:
        start, size = self._find(name)
        if size > limit:
            raise PthError(f"its entry {name} is {size} bytes long; expected at most {limit}.")
        return self._file[start : start + size].tobytes()

    def _find(self, name: str) -> tuple[int, int]:
        """The (first byte, size) of an entry's contents."""
        place = self._places.get(f"{self._root}/{name}")
        if place is None:
            raise PthError(f"its entry {name[:60]!r} is missing; download the file again.")
        return place


class _SmallReads(io.FileIO):
    """A file that refuses to read pieces larger than a plausible directory into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def _places(file: _SmallReads, data: NumpyArray) -> dict[str, tuple[int, int]]:
    """The (first byte, size) of every entry's contents, by name; no two overlap."""
    if is_lfs_pointer(data[:64].tobytes()):
        raise PthError("a Git LFS pointer, not the file itself; run git lfs pull.")
    try:
        with zipfile.ZipFile(file) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise PthError(
            f"the file is cut off or its zip directory does not fit the file ({error}); download "
            "it again."
        ) from None
    if len({entry.filename for entry in entries}) != len(entries):
        raise PthError("its zip directory lists a name twice; download the file again.")
    entries.sort(key=lambda entry: entry.header_offset)
    limits = [*(entry.header_offset for entry in entries), end]
    if entries and (limits[0] != 0 or limits[-2] > end):
        raise PthError("its zip directory does not fit the file; download it again.")
    return {e.filename: _place(e, data, to) for e, to in zip(entries, limits[1:], strict=True)}


def _place(entry: zipfile.ZipInfo, data: NumpyArray, end: int) -> tuple[int, int]:
    """The (first byte, size) of the contents, which must lie before `end`."""
    name, size = entry.filename[:60], entry.file_size
    if entry.flag_bits & 1 or entry.compress_type or entry.compress_size != size:
        raise PthError(
            f"its entry {name!r} is compressed or encrypted, which torch.save never does."
        )
    start = entry.header_offset + _LOCAL.size
    if start <= end:
        mark, name_bytes, extra_bytes = _LOCAL.unpack(data[entry.header_offset : start].tobytes())
        start += name_bytes + extra_bytes
        if mark == b"PK\x03\x04" and start + size <= end:
            return start, size
    raise PthError(f"its entry {name!r} reaches outside the file or into another entry.")
