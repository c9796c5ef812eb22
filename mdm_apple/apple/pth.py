"""torch.save files read without torch: the zip, its storages as views of the mapped file.

Enters: a .pth in the zip format of PyTorch 1.6 and later. Leaves: named tensors that stay on disk
until they are asked for, and the names of everything that was skipped. Nothing is unpickled (see
legacy_pickle), and every size is checked against the file before a byte is believed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mdm_apple.apple.pickle_walk import MAX_PICKLE_BYTES, Opaque, PthError, TensorRef, walk_pickle

Array = NDArray[Any]

MAX_DIRECTORY_BYTES = 16 << 20
_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")  # one file in the central directory
_LOCAL = struct.Struct("<4s5H3L2H")  # header in front of the bytes of one file

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
    _file: Array = field(repr=False)
    _start: int  # byte of the first element
    _strides: tuple[int, ...]  # in bytes
    _order: str  # "<" or ">"

    def numpy(self) -> Array:
        """The values: a read-only view of the mapped file, or float32 converted from bfloat16."""
        if 0 in self.shape:
            return np.zeros(self.shape, self._kind.newbyteorder("="))
        view: Array = np.ndarray(
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
    skipped: names of everything else; it was not looked into.
    """

    state_dict: dict[str, PthTensor]
    skipped: tuple[str, ...]
    other: dict[str, int | float | str | bool | None]


def read_pth(path: Path) -> PthReport:
    """List the tensors of a file that holds a state dict, bare or under the key `state_dict`.

    Raises PthError with one sentence when the file is damaged, of another format, or hostile.
    """
    try:
        archive = _Archive(_map(path))
        return _report(archive, walk_pickle(archive.description()))
    except PthError as error:
        raise PthError(f"{path}: {error}") from None


def check_zip(path: Path) -> None:
    """Raise PthError unless the file is one whole archive of torch.save; reads no tensors."""
    try:
        _Archive(_map(path))
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


def _map(path: Path) -> Array:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
        if not head.startswith(b"PK\x03\x04"):
            raise PthError(_what_else(head, size))
        return np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise PthError("no such file.") from None
    except OSError as error:
        raise PthError(f"cannot be read ({error.strerror}).") from None


def _what_else(head: bytes, size: int) -> str:
    """Why a file that is no zip is refused, and the way out."""
    if size == 0:
        return "the file is empty; download it again."
    if head.startswith(_OLD_FORMAT) or head[257:262] == b"ustar":
        return (
            "written in the format before PyTorch 1.6, which only unpickling can read; where you "
            "trust its source, convert it with torch: torch.save(torch.load(OLD), NEW)."
        )
    if head[8:9] == b"{":
        return "looks like a safetensors file; expected a .pth written by torch.save."
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a checkpoint; download it again."
    return "expected a zip archive written by torch.save."


@dataclass(frozen=True)
class _Entry:
    header: int  # byte at which the local header starts
    size: int


class _Archive:
    """The directory of an uncompressed zip, with the offsets checked."""

    def __init__(self, file: Array) -> None:
        self._file = file
        directory, self._end = self._directory()
        self._entries = self._list(directory)
        roots = [name[: -len("/data.pkl")] for name in self._entries if name.endswith("/data.pkl")]
        roots = [root for root in roots if "/" not in root]
        if len(roots) != 1:
            raise PthError("expected exactly one data.pkl in the archive, as torch.save writes.")
        self._root = roots[0]
        self._order = self._byte_order()

    def description(self) -> bytes:
        """The pickle that describes the tensors."""
        return self._read("data.pkl", MAX_PICKLE_BYTES)

    def tensor(self, name: str, ref: TensorRef) -> PthTensor:
        """The tensor as a view, after checking that all of it lies inside its storage."""
        storage, item = ref.storage, _ITEM_BYTES[ref.storage.dtype]
        start, size = self._place(f"data/{storage.key}")
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
        if f"{self._root}/byteorder" not in self._entries:
            return "<"  # older files have no such entry and are little-endian
        order = self._read("byteorder", 16)
        if order not in (b"little", b"big"):
            raise PthError("its byteorder entry says neither little nor big.")
        return "<" if order == b"little" else ">"

    def _read(self, name: str, limit: int) -> bytes:
        start, size = self._place(name)
        if size > limit:
            raise PthError(f"its entry {name} is {size} bytes long; expected at most {limit}.")
        return self._bytes(start, size)

    def _place(self, name: str) -> tuple[int, int]:
        """(first byte, size) of an entry's contents."""
        entry = self._entries.get(f"{self._root}/{name}")
        if entry is None:
            raise PthError(f"its entry {name[:60]!r} is missing; download the file again.")
        fields = _LOCAL.unpack(self._bytes(entry.header, _LOCAL.size))
        start = entry.header + _LOCAL.size + fields[9] + fields[10]
        if fields[0] != b"PK\x03\x04" or start + entry.size > self._end:
            raise PthError(f"its entry {name[:60]!r} reaches outside the file.")
        return start, entry.size

    def _bytes(self, start: int, size: int) -> bytes:
        if start < 0 or start + size > len(self._file):
            raise PthError("the file ends too early; download it again.")
        return self._file[start : start + size].tobytes()

    def _directory(self) -> tuple[bytes, int]:
        """(bytes of the central directory, where it starts)."""
        tail_at = max(0, len(self._file) - _END.size - 0xFFFF)
        tail = self._bytes(tail_at, len(self._file) - tail_at)
        found = tail.rfind(b"PK\x05\x06")
        if found < 0 or found + _END.size > len(tail):
            raise PthError("the file is cut off; download it again.")
        end_at = tail_at + found
        size, start = _END.unpack(tail[found : found + _END.size])[5:7]
        locator_at = end_at - _LOCATOR64.size
        if locator_at >= 0:
            signature, _, end64_at, _ = _LOCATOR64.unpack(self._bytes(locator_at, _LOCATOR64.size))
            if signature == b"PK\x06\x07":
                fields = _END64.unpack(self._bytes(end64_at, _END64.size))
                if fields[0] != b"PK\x06\x06":
                    raise PthError("its zip directory is damaged; download the file again.")
                size, start = fields[8], fields[9]
        if size > MAX_DIRECTORY_BYTES or start + size > end_at:
            raise PthError("its zip directory does not fit the file; download the file again.")
        return self._bytes(start, size), start

    def _list(self, directory: bytes) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        at = 0
        while at < len(directory):
            if at + _ENTRY.size > len(directory):
                raise PthError("its zip directory is cut off; download the file again.")
            fields = _ENTRY.unpack_from(directory, at)
            name_end = at + _ENTRY.size + fields[10]
            name = directory[at + _ENTRY.size : name_end].decode("utf-8", "replace")
            extra = directory[name_end : name_end + fields[11]]
            if fields[0] != b"PK\x01\x02" or name in entries:
                raise PthError("its zip directory is damaged; download the file again.")
            packed, size, header = _wide(extra, fields[8], fields[9], fields[16])
            if fields[3] & 1 or fields[4] != 0 or packed != size:
                raise PthError(
                    f"its entry {name[:60]!r} is compressed or encrypted, which torch.save never "
                    "does."
                )
            entries[name] = _Entry(header, size)
            at = name_end + fields[11] + fields[12]
        return entries


def _wide(extra: bytes, packed: int, size: int, header: int) -> tuple[int, int, int]:
    """Replace 32-bit fields that are full by their 64-bit values from the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = [
                v for (v,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])
            ]
            full = [value == 0xFFFFFFFF for value in (size, packed, header)]
            if len(wide) < sum(full):
                raise PthError("its zip directory is damaged; download the file again.")
            values = iter(wide)
            size = next(values) if full[0] else size
            packed = next(values) if full[1] else packed
            header = next(values) if full[2] else header
        at += 4 + length
    return packed, size, header
