"""What training would see of a folder of pictures or clips; everything is decoded once.

Input: a folder, read as training reads it. Output: a `Check` that names every file that is bad,
unused, too small, too short, cropped or there twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdm_apple.data.caption_files import CAPTION_SUFFIXES
from mdm_apple.data.dataset import BadPictureError, DataError, Dataset, with_captions
from mdm_apple.data.decode_all import decode_all
from mdm_apple.data.folder import Folder, Picture, as_dataset, read_folder
from mdm_apple.data.kinds import PICTURES, Kind
from mdm_apple.data.listing import counted
from mdm_apple.data.read_picture import Examined, examine
from mdm_apple.text.tokenizer import Tokenizer

ANY_SIDE = 64  # to decode with, where the size of the model is not known
MUCH = 0.5  # share of a picture that its crop loses
ENDLESS = 1 << 30  # tokens


@dataclass(frozen=True)
class Tokens:
    """Lengths of the captions in tokens, the end token included. cut: captions beyond `limit`."""

    limit: int
    longest: int
    cut: list[str]


@dataclass(frozen=True)
class Check:
    """What a check found. Pictures are paths below `folder`, in the order of training.

    kind: whether they are pictures or files of clips, of which each may hold several.

    dataset: the pictures as training sees them; None if none can be used. good: the indices of
    those that can be decoded. source: where captions come from. total: captioned pictures, the bad
    ones included.
    bad, missing: pictures with a caption that cannot be used, or that are not there, and why.
    without_caption: pictures that are not used. without_picture: caption files that are not used.
    other_files: files that are not used. empty_captions: pictures whose caption is empty.
    too_small: pictures that are enlarged, and the pixels of their shorter side; empty if the size
    of the model is not known. cropped: pictures of which the square shows less than half, and the
    share that is lost. duplicates: groups of pictures with equal pixels.
    too_short: files without a clip, and the frames that they have at the model's pace.
    gray: become RGB. transparent: are put on white. animated: of these only the first frame is
    used. remarks: how the folder was understood. tokens: None if the model is not known.
    """

    folder: Path
    side: int | None
    source: str
    dataset: Dataset | None
    good: list[int]
    total: int
    bad: dict[str, str]
    missing: dict[str, str]
    without_caption: list[str]
    without_picture: list[str]
    other_files: list[str]
    empty_captions: list[str]
    too_small: dict[str, int]
    cropped: dict[str, float]
    duplicates: list[list[str]]
    gray: list[str]
    transparent: list[str]
    animated: list[str]
    remarks: list[str]
    tokens: Tokens | None = None
    kind: Kind = PICTURES
    too_short: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def one(self) -> str:
        """What a sentence calls a file of the folder."""
        return "picture" if self.kind is PICTURES else "file"

    def captions(self) -> list[str]:
        """The captions of the pictures that training sees."""
        every = [] if self.dataset is None else self.dataset.captions()
        return [every[index] for index in self.good]

    def refusal(self) -> str | None:
        """Why training would be refused or end; None if it can start and no picture is bad."""
        if self.too_short and len(self.too_short) == self.total:
            return "no file is long enough for a clip; give longer ones."
        if not self.good:
            if self.total == 1:
                return f"the only {self.one} cannot be used; repair it."
            return f"none of the {self.total} {self.one}s can be used; repair them."
        faults = [
            f"{len(names)} of {counted(self.total, self.one)} "
            f"{'is' if len(names) == 1 else 'are'} {text}"
            for names, text in ((self.bad, "bad"), (self.missing, "not there"))
            if names
        ]
        if not faults:
            return None
        return f"{' and '.join(faults)}; repair or remove them, or train with --skip-bad."


def check_folder(
    root: Path,
    side: int | None = None,
    captions: Sequence[str] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Check:
    """Read a folder and decode each picture, a few at a time.

    Args:
        side: pixels of the model's pictures; None if they are not known.
        captions: only pictures with these.
        progress: called with the pictures done and their total.

    Raises DataError for a folder that is missing, empty or can be read in two ways.
    """
    folder = read_folder(root)
    # where all pictures have faults, they are named; an empty folder is refused
    opened = as_dataset(folder, side or ANY_SIDE) if folder.pictures or not folder.faults else None
    if opened is not None and captions is not None:
        opened = with_captions(opened, captions)
    chosen = _chosen(folder, opened)
    found: dict[int, Examined] = {}
    bad = {fault.name: reason_of(fault.error) for fault in folder.faults if not fault.missing}
    everything = range(len(chosen))

    def look(index: int) -> Examined:
        return examine(chosen[index].path, side or ANY_SIDE)

    for done, (index, result) in enumerate(decode_all(everything, look), 1):
        if isinstance(result, BadPictureError):
            bad[chosen[index].file.name] = result.reason
        else:
            found[index] = result
        progress(done, len(chosen))
    return _check(folder, side, opened, chosen, found, bad)


def count_tokens(captions: Sequence[str], tokenizer: Tokenizer, limit: int) -> Tokens:
    """The lengths of captions as a model with this limit reads them."""
    lengths = {text: len(tokenizer.tokens(text, ENDLESS)) for text in dict.fromkeys(captions)}
    longest = max(lengths.values(), default=0)
    return Tokens(limit, longest, [text for text, length in lengths.items() if length > limit])


def _chosen(folder: Folder, dataset: Dataset | None) -> list[Picture]:
    """The pictures of the data set, in its order."""
    if dataset is None:
        return []
    places = {(picture.file, picture.caption): picture for picture in folder.pictures}
    return [places[key] for key in zip(dataset.files, dataset.captions(), strict=True)]


def _check(
    folder: Folder,
    side: int | None,
    opened: Dataset | None,
    chosen: Sequence[Picture],
    found: dict[int, Examined],
    bad: dict[str, str],
) -> Check:
    listing = folder.listing
    used = [chosen[index] for index in found]
    examined = list(found.values())

    def names(which: Callable[[Examined], bool]) -> list[str]:
        some = (p.file.name for p, seen in zip(used, examined, strict=True) if which(seen))
        return list(dict.fromkeys(some))

    alone, others = unused_files(folder)
    return Check(
        folder=folder.root,
        side=side,
        source=listing.source,
        dataset=opened,
        good=list(found),
        total=len(chosen) + len(folder.faults),
        bad=dict(sorted(bad.items())),
        missing={fault.name: str(fault.error) for fault in folder.faults if fault.missing},
        without_caption=listing.unlisted,
        without_picture=alone,
        other_files=others,
        empty_captions=[p.file.name for p in used if not p.caption],
        too_small={p.file.name: min(p.size) for p in used if side and min(p.size) < side},
        cropped={p.file.name: lost for p in used if (lost := lost_share(p)) > MUCH},
        duplicates=_duplicates(used, examined),
        gray=names(lambda seen: seen.gray),
        transparent=names(lambda seen: seen.transparent),
        animated=names(lambda seen: seen.animated),
        remarks=listing.remarks,
    )


def unused_files(folder: Folder) -> tuple[list[str], list[str]]:
    """Caption files that nothing bears the name of, and other files without use."""
    listing = folder.listing
    others = [name for name in listing.skipped if not folder.kind.has(name)]
    alone = [n for n in others if listing.beside and n.lower().endswith(CAPTION_SUFFIXES)]
    return alone, [name for name in others if name not in set(alone)]


def lost_share(picture: Picture) -> float:
    """The share of a picture that lies outside its square."""
    return 1 - min(picture.size) / max(picture.size)


def _duplicates(used: Sequence[Picture], examined: Sequence[Examined]) -> list[list[str]]:
    """Names of different files with equal pixels, in groups."""
    groups: dict[str, dict[str, None]] = {}
    for picture, seen in zip(used, examined, strict=True):
        groups.setdefault(seen.sha256, {})[picture.file.name] = None
    return [list(names) for names in groups.values() if len(names) > 1]


def reason_of(error: DataError) -> str:
    """Why a file is bad, without its name where that is known."""
    return error.reason if isinstance(error, BadPictureError) else str(error).removesuffix(".")
