"""Captions: how each is cleaned, and lists of them as text files.

A file is UTF-8, with or without a byte order mark, and holds one caption per line; blank lines are
skipped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from mdm_apple.errors import MdmError, system_reason
from mdm_apple.storage.files import atomic_file

CAPTIONS = "captions.txt"  # beside a trained model: the captions of its pictures
MAX_CAPTIONS_BYTES = 256 << 20
MAX_CAPTION_CHARACTERS = 1 << 16

_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff")


def clean_caption(caption: str) -> str:
    """Clean a caption to one line with single spaces, trimmed; may be empty.

    Control characters, line ends and lone surrogates count as spaces; direction overrides and byte
    order marks are dropped. Emoji joiners stay.
    """
    kept = (" " if _separates(char) else char for char in caption if char not in _DIRECTIONS)
    return " ".join("".join(kept).split())


def _separates(character: str) -> bool:
    """Whether it is a control character, a line or paragraph separator, or a lone surrogate."""
    return unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")


def check_text(name: str, text: str) -> None:
    """Refuse text that is too long, or that no file can hold: arguments that are not UTF-8."""
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise MdmError(
            f"{name}: expected at most {MAX_CAPTION_CHARACTERS:,} characters, got {len(text):,}."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MdmError(f"{name}: {text[:60]!a} is not UTF-8 text; type it in UTF-8.") from None


def as_text(argument: str) -> str:
    """An argument of the command line as text.

    Where the locale is not UTF-8, Python keeps other characters as the lone surrogates of their
    bytes. If these bytes are UTF-8, they are read as such.
    """
    try:
        return argument.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        return argument


def read_captions(path: Path) -> tuple[str, ...]:
    """The captions in order, cleaned like the captions of pictures, so that equal ones match.

    Raises MdmError if the file is not text or holds no caption.
    """
    text = read_list(path, "captions", "one caption per line", MAX_CAPTIONS_BYTES)
    captions = tuple(filter(None, map(clean_caption, text.splitlines())))
    if not captions:
        raise MdmError(f"{path}: holds no caption; expected one per line.")
    return captions


def read_list(path: Path, of: str, form: str, most: int) -> str:
    """The text of a file that lists something, without its byte order mark.

    Args:
        of: the things, as a refusal names them. form: how they are written. most: bytes.

    Raises MdmError.
    """
    try:
        if path.stat().st_size > most:
            raise MdmError(f"{path}: expected at most {most >> 20} MiB of {of}.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MdmError(f"{path}: no such file; give a text file with {form}.") from None
    except UnicodeDecodeError as error:
        raise MdmError(
            f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8."
        ) from None
    except OSError as error:
        raise MdmError(f"{path}: cannot be read: {system_reason(error)}") from None


def write_captions(path: Path, captions: Iterable[str]) -> None:
    """Write each caption once, in order; raises FileError."""
    kept = [caption for caption in dict.fromkeys(captions) if caption]
    with atomic_file(path) as file:
        file.write("".join(f"{caption}\n" for caption in kept).encode())
