"""Hostile and damaged tar files, built header by header, and what is said of each."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

from shard_files import jpeg, sample, tar

BLOCK = 512
TRAP = b"cposix\nsystem\n(S'touch owned'\ntR."  # a pickle that runs a command
GNU = b"ustar  \0"
USTAR = b"ustar\x0000"
PICTURE = jpeg(0)
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Hostile:
    """says: what must stand in the sentence. at: the byte that it names."""

    name: str
    data: bytes
    says: str
    at: int = 0


def header(
    name: bytes = b"0.jpg",
    size: bytes | int = 0,
    kind: bytes = b"0",
    magic: bytes = USTAR,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    number = b"%011o\0" % size if isinstance(size, int) else size
    block = name.ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + number.ljust(12, b"\0")
    block += b"00000000000\0" + b" " * 8 + kind + bytes(100) + magic + bytes(80)
    block += prefix.ljust(155, b"\0") + bytes(12)
    assert len(block) == BLOCK
    total = b"%06o\0 " % sum(block) if checksum is None else checksum.ljust(8, b"\0")
    return block[:148] + total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes, kind: bytes = b"0", magic: bytes = USTAR) -> bytes:
    return header(name, len(data), kind, magic) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def pax(*records: bytes) -> bytes:
    return member(b"PaxHeader", b"".join(records), b"x")


GOOD = member(b"0.jpg", PICTURE) + member(b"0.txt", b"red")
NAMES = {
    "absolute": b"/etc/0.jpg",
    "above": b"../0.jpg",
    "above in the middle": b"a/../../0.jpg",
    "above at the end": b"a/..",
    "space": b"a 0.jpg",
    "backslash": b"..\\0.jpg",
    "drive": b"C:0.jpg",
    "accent": "ä.jpg".encode(),
    "line": b"a\n0.jpg",
    "escape": b"a\x1b[31m.jpg",
    "shell": b"$(touch owned).jpg",
    "star": b"a*.jpg",
    "percent": b"%2e%2e/0.jpg",
    "not UTF-8": b"\xff\xfe.jpg",
    "nothing": b"",
}
SAYS = {"absolute": "is absolute", "nothing": "the name"} | {
    name: "leaves its folder" for name in NAMES if name.startswith("above")
}


def cases() -> Iterator[Hostile]:
    yield from _names()
    yield from _kinds()
    yield from _headers()
    yield from _ends()
    yield from _extended()
    yield from _samples()


def _names() -> Iterator[Hostile]:
    for name, written in NAMES.items():
        says = SAYS.get(name, "has other characters")
        plain = GOOD + member(written, PICTURE) + END
        yield Hostile(f"name with {name}", plain, says, len(GOOD))
        extended = pax(record(b"path", written))
        yield Hostile(
            f"pax name with {name}",
            GOOD + extended + member(b"1.jpg", PICTURE) + END,
            says,
            len(GOOD + extended),
        )
        longer = member(b"././@LongLink", written + b"\0", b"L", GNU)
        yield Hostile(
            f"long name with {name}",
            GOOD + longer + member(b"1.jpg", PICTURE, magic=GNU) + END,
            says,
            len(GOOD + longer),
        )
    for prefix, says in ((b"..", "leaves its folder"), (b"/etc", "is absolute")):
        spoiled = header(b"1.jpg", len(PICTURE), prefix=prefix) + padded(PICTURE)
        yield Hostile(f"prefix {prefix!r}", GOOD + spoiled + END, says, len(GOOD))
    yield Hostile(
        "a folder's name", GOOD + member(b"1/", b"x") + END, "name of a folder", len(GOOD)
    )
    folder = member(b"../", b"", b"5")
    yield Hostile("a folder above", GOOD + folder + END, "leaves its folder", len(GOOD))
    long = b"a" * 60_000 + b"/../0.jpg"
    extended = pax(record(b"path", long))
    yield Hostile(
        "a very long name", extended + member(b"1.jpg", b"") + END, "leaves", len(extended)
    )


def _kinds() -> Iterator[Hostile]:
    named = {
        *((b"1", "a hard link"), (b"2", "a link"), (b"3", "a device"), (b"4", "a device")),
        *((b"6", "a pipe"), (b"g", "a pax header for all members"), (b"K", "the name of a link")),
        *((b"S", "a sparse file"),),
    }
    unknown = [(bytes([kind]), "unknown type") for kind in b"789ADMNVX\x01\x7f\xff"]
    for kind, says in sorted([*named, *unknown]):
        yield Hostile(f"kind {kind!r}", GOOD + member(b"1.jpg", b"x", kind) + END, says, len(GOOD))
    yield Hostile("a folder of bytes", member(b"a/", b"x", b"5") + END, "bytes of its own")


def _headers() -> Iterator[Hostile]:
    sizes: dict[str, tuple[bytes | int, str]] = {
        "beyond the file": (10_000_000, "beyond the file"),
        "of 8 GiB": (b"77777777777\0", "beyond the file"),
        "of an exabyte": (b"\x80" + bytes(3) + b"\x0f" + b"\xff" * 7, "beyond the file"),
        "below zero": (b"\xff" * 12, "is no number"),
        "of letters": (b"0000000000x\0", "is no number"),
        "with a sign": (b"-0000000001\0", "is no number"),
        "of eights": (b"00000000008\0", "is no number"),
        "of nothing": (bytes(12), "is no number"),
        "of spaces": (b" " * 12, "is no number"),
        "with an underscore": (b"0000000_001\0", "is no number"),
    }
    for name, (size, says) in sizes.items():
        spoiled = header(b"1.jpg", size) + padded(PICTURE)
        yield Hostile(f"size {name}", GOOD + spoiled + END, says, len(GOOD))
    for checksum in (b"000000\0 ", b"777777\0 ", b"", b"-00001\0 ", b"zzzzzz\0 "):
        spoiled = header(b"1.jpg", 0, checksum=checksum)
        yield Hostile(f"checksum {checksum!r}", GOOD + spoiled + END, "checksum", len(GOOD))
    off = b"%06o\0 " % (sum(header(b"1.jpg")[:148]) + 65521)  # equal modulo Adler's prime
    yield Hostile(
        "checksum by a prime", GOOD + header(b"1.jpg", checksum=off) + END, "checksum", len(GOOD)
    )
    for magic in (bytes(8), b"USTAR\x0000", b"ustar\x0001", b"ustar   "):
        spoiled = header(b"1.jpg", 0, magic=magic)
        yield Hostile(f"magic {magic!r}", GOOD + spoiled + END, "no USTAR, GNU or pax", len(GOOD))


def _ends() -> Iterator[Hostile]:
    sound = GOOD + END
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("0.jpg", PICTURE)
    packed = {
        "gzip": gzip.compress(sound),
        "bzip2": bz2.compress(sound),
        "xz": lzma.compress(sound),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(600),
        "zip": zipped.getvalue(),
    }
    for name, data in packed.items():
        yield Hostile(f"packed with {name}", data, f"packed with {name}")
    first = BLOCK + len(padded(PICTURE))  # where the second header stands
    cut = {
        "in the first header": (100, "cut off", 0),
        "in a picture": (BLOCK + 10, "beyond the file", 0),
        "before a header": (first, "cut off", first),
        "in a header": (first + 511, "cut off", first),
        "in a caption": (first + BLOCK + 1, "beyond the file", first),
        "before the end mark": (len(GOOD), "cut off", len(GOOD)),
        "in the end mark": (len(GOOD) + BLOCK, "end mark", len(GOOD)),
        "in its last block": (len(GOOD) + BLOCK + 511, "end mark", len(GOOD)),
    }
    for name, (length, says, at) in cut.items():
        yield Hostile(f"cut {name}", sound[:length], says, at)
    yield Hostile("empty", b"", "cut off")
    yield Hostile("text", b"these are no shards\n" * 100, "no USTAR, GNU or pax")
    yield Hostile("two archives", sound + sound, "behind the end mark", len(sound))
    tail = sound + bytes(700) + b"x"
    yield Hostile("a byte behind", tail, "behind the end mark", len(tail) - 1)
    yield Hostile("two megabytes behind", sound + bytes(2 << 20), "follow the last", len(GOOD))


def _extended() -> Iterator[Hostile]:
    then = member(b"1.jpg", PICTURE)
    path, mtime = record(b"path", b"1.jpg"), record(b"mtime", b"1.5")
    spoiled = {
        "a key": record(b"linkpath", b"/etc/passwd"),
        "a sparse key": record(b"GNU.sparse.name", b"1.jpg"),
        "a charset": record(b"hdrcharset", b"BINARY"),
        "a key that is not ASCII": record(b"\xff\xff", b"1"),
        "an endless key": record(b"k" * 5000, b"1"),
        "a key twice": path + path,
        "no equals sign": b"9 path 1\n",
        "no length": b"path=1.jpg\n",
        "length zero": b"0 path=1.jpg\n",
        "length minus one": b"-1 path=1.jpg\n",
        "a length too short": b"8 path=1.jpg\n",
        "a length too long": b"99 path=1.jpg\n",
        "an endless length": b"9" * 5000 + b" path=1.jpg\n",
        "no line end": path[:-1] + b"x",
        "zeros": bytes(20),
    }
    for name, body in spoiled.items():
        data = GOOD + member(b"PaxHeader", body, b"x") + then + END
        yield Hostile(f"pax with {name}", data, "a pax header", len(GOOD))
    for value in (b"-1", b"1.5", b"", b"1e9", b"nan", b"9" * 40, b"0x10"):
        extended = pax(record(b"size", value))
        data = GOOD + extended + then + END
        yield Hostile(f"pax size {value!r}", data, "is no number", len(GOOD + extended))
    extended = pax(record(b"size", b"999999999"))
    data = GOOD + extended + then + END
    yield Hostile("pax size beyond the file", data, "beyond the file", len(GOOD + extended))
    yield Hostile(
        "a large pax header",
        GOOD + member(b"PaxHeader", bytes(65 << 10), b"x") + then + END,
        "larger than 64 KiB",
        len(GOOD),
    )
    yield Hostile(
        "a pax header of gigabytes",
        GOOD + header(b"PaxHeader", 0o77777777777, b"x") + then + END,
        "larger than 64 KiB",
        len(GOOD),
    )
    yield Hostile(
        "a pax header that is cut off", GOOD + pax(mtime)[:520], "ends beyond the file", len(GOOD)
    )
    last = GOOD + pax(path)
    yield Hostile("a pax header without a member", last + END, "has no member", len(last))
    two = pax(mtime)
    twice = GOOD + two + two
    yield Hostile("two pax headers", twice + then + END, "two extended headers", len(GOOD + two))
    long = member(b"././@LongLink", b"2.jpg\0", b"L", GNU)
    both = GOOD + pax(path)
    yield Hostile("two names", both + long + then + END, "two extended headers", len(both))


def _samples() -> Iterator[Hostile]:
    one, other = sample("a", 0), sample("b", 1)
    split = tar([one[0], *other, one[2]])
    yield Hostile("a key that comes back", split, "comes twice", -1)
    by_suffix = tar([one[0], other[0], one[2], other[2]])
    yield Hostile("sorted by suffix", by_suffix, "comes twice", -1)
    apart = tar([one[0], ("c.pkl", TRAP), one[2]])
    yield Hostile("a pickle between", apart, "comes twice", -1)
    for first, second, says in (
        ("a.jpg", "a.jpg", "two pictures"),
        ("a.jpg", "a.JPG", "two pictures"),
        ("a.jpg", "a.png", "two pictures"),
        ("a.txt", "a.txt", "two .txt files"),
        ("a.json", "a.json", "two .json files"),
    ):
        data = member(first.encode(), PICTURE)
        doubled = data + member(second.encode(), PICTURE) + END
        yield Hostile(f"{first} and {second}", doubled, says, len(data))


CASES = list(cases())
