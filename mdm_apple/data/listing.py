"""What a folder of pictures holds: `Listing`, `Fault`, and the sentences about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mdm_apple.data.dataset import DataError
from mdm_apple.data.folder_tree import Tree
from mdm_apple.data.read_picture import shown

MAX_NAMED = 10


@dataclass(frozen=True)
class Fault:
    """A picture that cannot be used: its name as written, and the refusal that says why.

    missing: it is named in a table, and no picture of the folder fits.
    """

    name: str
    error: DataError
    missing: bool = False


@dataclass(frozen=True)
class Listing:
    """(path below the folder, caption) pairs, and what else was found.

    source: where captions come from, for a person. beside: each in a file of its own. unlisted:
    pictures without a caption. skipped: files and folders without use, save pictures that a remark
    names. faults: pictures with a caption that cannot be used. remarks: sentences for a person.
    """

    source: str
    pairs: list[tuple[str, str]]
    unlisted: list[str]
    skipped: list[str]
    faults: list[Fault] = field(default_factory=list[Fault])
    remarks: list[str] = field(default_factory=list[str])
    beside: bool = False


def counted(count: int, what: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def named(files: Sequence[str]) -> str:
    """The first few names in brackets."""
    more = len(files) - MAX_NAMED
    return (
        f" ({', '.join(map(shown, files[:MAX_NAMED]))}{f' and {more} more' if more > 0 else ''})"
        if files
        else ""
    )


def unclear(tree: Tree, one: str, other: str) -> DataError:
    """The refusal of a folder that can be read in two ways."""
    return DataError(
        f"{shown(tree.root)}: unclear where captions come from, {shown(one)} or {shown(other)}; "
        "keep one of the two."
    )
