"""The members of a tar file by a strict reader: USTAR, GNU and pax, one read for each member.

Readers of tar files disagree about what is unusual in them. So whatever is unusual is refused, with
the byte at which it stands: links and devices, names that leave the folder, sparse files, global
headers, a checksum that is wrong, a file that is cut off, or bytes behind the end mark.

Source: POSIX.1-2017, `pax`, sections "ustar Interchange Format" and "pax Header Block"; "Basic Tar
Format" in the manual of GNU tar.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from mdm_apple.data.shards.shard_file import BadShardError, ShardFile

BLOCK = 512
AHEAD = 4 * BLOCK  # bytes of a read: two headers, and the first bytes of a member
MAX_EXTENDED_BYTES = 64 << 10  # of a pax header, or of a long name
MAX_TAIL_BYTES = 1 << 20  # of zeros behind the end mark; tar programs fill up blocks of 10 KiB
SHOWN = 80  # characters of a name in a sentence

_EMPTY = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_MAGIC = {b"ustar\x0000": True, b"ustar  \0": False}  # whether a prefix goes before the name
_PAX_KEYS = ("path", "size", "mtime")
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_REFUSED = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"g": "a pax header for all members",
    b"K": "the name of a link",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A file inside a tar file. at: byte of its header. start: of its data, `size` bytes long.

    ahead: the first of these bytes, perhaps none.
    """

    name: str
    at: int
    start: int
    size: int
    ahead: bytes


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes


def members(file: ShardFile) -> Iterator[Member]:
    """The files inside, in order; folders are passed over.

    Raises BadShardError for the first thing that is unusual.
    """
    _refuse_packed(file)
    place = 0
    while True:
        at, data = place, file.read(place, AHEAD)
        if data[:BLOCK] == _EMPTY:
            _check_end(file, at)
            return
        longer: dict[str, bytes] = {}
        header = _header(file, at, data)
        while header.kind in (b"x", b"L"):
            extended, place = _extended(file, at, header, data)
            if longer.keys() & extended.keys():
                raise BadShardError(file.name, at, "two extended headers for one member")
            longer |= extended
            if place + BLOCK > at + len(data):
                at, data = place, file.read(place, AHEAD)
            else:
                data, at = data[place - at :], place
            header = _header(file, at, data)
        member = _member(file, at, header, longer, data[BLOCK:])
        if header.kind != b"5":
            yield member
        place = _padded(member.start + member.size)


def member_name_at(file: ShardFile, start: int) -> str:
    """The name in the header before a member's data, as far as it fits there; "" if none does."""
    try:
        return _header(file, start - BLOCK, file.read(start - BLOCK, BLOCK)).name.decode()
    except (BadShardError, UnicodeDecodeError):
        return ""


def _refuse_packed(file: ShardFile) -> None:
    start = file.read(0, 8)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise BadShardError(file.name, 0, f"it is packed with {name}, so unpack it")


def _header(file: ShardFile, at: int, data: bytes) -> _Header:
    block = data[:BLOCK]
    if len(block) < BLOCK:
        end = min(at, file.size)  # the last member's padding may be cut off too
        raise BadShardError(file.name, end, "the file is cut off, as it has no end mark")
    if block == _EMPTY:
        raise BadShardError(file.name, at, "an extended header has no member")
    magic = block[257:265]
    if magic not in _MAGIC:
        raise BadShardError(file.name, at, "no USTAR, GNU or pax header stands here")
    if _number(block[148:156]) != _sum(block):
        raise BadShardError(file.name, at, "the checksum of a header is wrong")
    size = _number(block[124:136])
    if size is None:
        raise BadShardError(file.name, at, "the size of a member is no number")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if _MAGIC[magic] else b""
    kind = block[156:157]
    if kind in _REFUSED:
        raise BadShardError(file.name, at, f"a member is {_REFUSED[kind]}")
    if kind not in (b"0", b"\0", b"5", b"x", b"L"):
        raise BadShardError(file.name, at, f"a member is of the unknown type {kind!r}")
    return _Header(prefix + b"/" + name if prefix else name, size, kind)


def _sum(block: bytes) -> int:
    """The sum of all bytes, where those of the checksum count as spaces."""
    own = sum(block[148:156])
    # Adler's first sum is 1 + that of the bytes modulo 65521, which 512 ASCII bytes do not reach.
    total = (zlib.adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    return total - own + 8 * 0x20


def _number(field: bytes) -> int | None:
    """Octal digits, or as GNU tar writes larger ones; None for another field."""
    found = _OCTAL.fullmatch(field)
    if found:
        return int(found[1], 8)
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return None


def _extended(
    file: ShardFile, at: int, header: _Header, data: bytes
) -> tuple[dict[str, bytes], int]:
    """What a pax header or a long name says, and the place of the next header."""
    if header.size > MAX_EXTENDED_BYTES:
        raise BadShardError(
            file.name, at, f"an extended header is larger than {MAX_EXTENDED_BYTES >> 10} KiB"
        )
    end = BLOCK + header.size
    body = data[BLOCK:end] if end <= len(data) else file.read(at + BLOCK, header.size)
    if len(body) < header.size:
        raise BadShardError(file.name, at, "an extended header ends beyond the file")
    following = at + BLOCK + _padded(header.size)
    if header.kind == b"L":
        return {"path": body.partition(b"\0")[0]}, following
    return _records(file, at, body), following


def _records(file: ShardFile, at: int, body: bytes) -> dict[str, bytes]:
    """The records of a pax header, `LENGTH KEY=VALUE` and a line end each."""
    found: dict[str, bytes] = {}
    while body:
        digits, _, _ = body[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = body[len(digits) + 1 : length].partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(body):
            raise BadShardError(file.name, at, "a pax header is damaged")
        name = key.decode("ascii", "replace")
        if name not in _PAX_KEYS:
            raise BadShardError(
                file.name, at, f"a pax header has the key {name[:60]!r}, not path, size or mtime"
            )
        if name in found:
            raise BadShardError(file.name, at, f"a pax header has the key {name} twice")
        found[name] = value[:-1]
        body = body[length:]
    return found


def _member(
    file: ShardFile, at: int, header: _Header, longer: dict[str, bytes], ahead: bytes
) -> Member:
    size = header.size
    if "size" in longer:
        digits = longer["size"]
        if not digits.isdigit() or len(digits) > 18:
            raise BadShardError(file.name, at, "the size in a pax header is no number")
        size = int(digits)
    name = _checked_name(file, at, longer.get("path", header.name), header.kind == b"5")
    start = at + BLOCK
    if header.kind == b"5" and size:
        raise BadShardError(file.name, at, f"the folder {_short(name)} has bytes of its own")
    if start + size > file.size:
        raise BadShardError(
            file.name, at, f"the member {_short(name)} ends at byte {start + size}, beyond the file"
        )
    return Member(name, at, start, size, ahead[:size])


def _checked_name(file: ShardFile, at: int, written: bytes, is_folder: bool) -> str:
    name = written.decode("latin-1")
    short = _short(name)
    if not _NAME.fullmatch(name):
        raise BadShardError(
            file.name, at, f"the name {short} has other characters than A-Z a-z 0-9 _ . / -"
        )
    if name.startswith("/"):
        raise BadShardError(file.name, at, f"the name {short} is absolute")
    if ".." in name.split("/"):
        raise BadShardError(file.name, at, f"the name {short} leaves its folder")
    if name.endswith("/") and not is_folder:
        raise BadShardError(file.name, at, f"the file {short} has the name of a folder")
    return name


def _short(name: str) -> str:
    return ascii(name if len(name) <= SHOWN else name[:SHOWN] + "...")


def _check_end(file: ShardFile, at: int) -> None:
    """Two empty blocks, and zeros behind them."""
    rest = file.size - at
    if rest < 2 * BLOCK:
        raise BadShardError(file.name, at, "the file is cut off in its end mark")
    if rest > MAX_TAIL_BYTES:
        raise BadShardError(file.name, at, f"{rest} bytes follow the last member")
    tail = file.read(at, rest)
    if tail.count(0) != len(tail):
        behind = at + next(place for place, byte in enumerate(tail) if byte)
        raise BadShardError(file.name, behind, "something stands behind the end mark")


def _padded(count: int) -> int:
    return count + -count % BLOCK
