"""A folder of pictures per class: its name is the caption of all its pictures.

Input: a `Tree` without other captions. Output: a `Listing`, or why the names of the folders may be
none of captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from mdm_apple.data.caption_files import CAPTION_SUFFIXES
from mdm_apple.data.caption_tables import is_table
from mdm_apple.data.dataset import DataError
from mdm_apple.data.folder_tree import Tree, folder_of, same_name, stem_of
from mdm_apple.data.kinds import CLIPS, Kind
from mdm_apple.data.listing import MAX_NAMED, Listing, counted, unclear
from mdm_apple.data.read_picture import shown
from mdm_apple.text.captions import clean_caption

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")
# Files about the whole folder, which lie beside pictures of every layout.
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|credits?|authors?|changelog|sources?)\b", re.I)
_REPEATS = re.compile(r"(\d+)_(?=.)")
_PICTURES = (
    r"images?|imgs?|photos?|pictures?|pics?|masks?|data|datasets?|files|jpegs?|jpgs?|pngs?|"
    r"jpegimages|raw|labels?|annotations?|inputs?|outputs?|sources?|targets?|conditions?|"
    r"conditioning|crops?|thumbs|thumbnails|originals?|resized|samples?"
)
_SPLIT = re.compile(
    rf"({'|'.join(SPLITS)})([ _.-]?(\d[\d_.-]*|[a-c]|set|split|small|full|{_PICTURES}))?", re.I
)
_CLIPS = re.compile(r"(videos?|clips?|movies?|gifs?|mp4s?|webms?)([ _.-]?\d[\d_.-]*)?", re.I)
_PLACE = re.compile(rf"({_PICTURES})([ _.-]?(\d[\d_.-]*|[a-c]|{'|'.join(SPLITS)}))?", re.I)


def by_classes(tree: Tree, split: str) -> Listing:
    """Pictures captioned by their folder. Raises DataError if the name may mean something else.

    split: the folder that holds all classes, such as `train`; empty for the folder itself.
    """
    prefix = f"{split}/" if split else ""
    inside = {name: name.removeprefix(prefix) for name in tree.pictures}
    classes = list(dict.fromkeys(n.split("/")[0] for n in inside.values() if n.count("/") == 1))
    loose = [name for name, below in inside.items() if "/" not in below]
    if not classes:
        return Listing("nothing", [], tree.pictures, list(tree.files))
    if loose:
        one = tree.kind.one
        raise unclear(tree, f"the {one} {loose[0]}", f"the folder of {one}s {classes[0]}")
    captionlike = [*filter(_caption_like, tree.files), *_beside_pictures(tree)]
    if captionlike:
        raise unclear(tree, f"the name of the folder {classes[0]}", captionlike[0])
    if len(classes) == 1:
        raise DataError(
            f"{shown(tree.root)}: unclear whether {shown(classes[0])!r} is the caption of "
            f"{_all(len(inside), tree.kind)} in that folder or only where they lie; put the "
            f"caption of each {tree.kind.one} in a .txt file beside it, or list them in a "
            "metadata.jsonl."
        )
    _refuse_places(tree, classes)
    repeated = all(_REPEATS.match(name) for name in classes)
    pairs = [
        (name, _class_caption(below.split("/")[0], repeated))
        for name, below in inside.items()
        if below.count("/") == 1
    ]
    used = {name for name, _ in pairs}
    return Listing(
        "the names of the folders",
        pairs,
        [name for name in tree.pictures if name not in used],
        [name for name in tree.files if name not in used],
        remarks=about_repeats(classes, tree.kind) if repeated else [],
    )


def _all(count: int, kind: Kind) -> str:
    return f"the {kind.one}" if count == 1 else f"all {counted(count, kind.one)}"


def _refuse_places(tree: Tree, classes: Sequence[str]) -> None:
    """Raises DataError if a class is called as the parts of a data set are."""
    for name in classes:
        bare = _REPEATS.sub("", name, count=1)
        split = _SPLIT.fullmatch(bare)
        if split or _PLACE.fullmatch(bare) or (tree.kind is CLIPS and _CLIPS.fullmatch(bare)):
            part = "a part of the data set" if split else "only where they lie"
            raise DataError(
                f"{shown(tree.root)}: unclear whether {shown(name)!r} is the caption of the "
                f"{tree.kind.one}s in that folder or {part}; name the folder that holds the "
                f"classes, rename this one, or list the {tree.kind.one}s in a metadata.jsonl."
            )


def _beside_pictures(tree: Tree) -> list[str]:
    """Files that bear the name of the picture beside them, and so may be about it."""
    names = {(folder_of(name), same_name(stem_of(name))) for name in tree.pictures}
    names |= {(folder_of(name), same_name(PurePosixPath(name).name)) for name in tree.pictures}
    return [
        name
        for name in tree.files
        if not tree.kind.has(name) and (folder_of(name), same_name(stem_of(name))) in names
    ]


def _class_caption(folder: str, repeated: bool) -> str:
    name = _REPEATS.sub("", folder, count=1) if repeated else folder
    return clean_caption(name.replace("_", " ").replace("-", " "))


def about_repeats(folders: Iterable[str], kind: Kind) -> list[str]:
    """A remark on folder names that ask for repeats, as `10_cat` does."""
    asked = sorted({found[1] for folder in folders if (found := _REPEATS.match(folder))})
    if not asked:
        return []
    return [
        f"the number before _ in a folder's name ({', '.join(asked[:MAX_NAMED])}) is no part of a "
        f"caption; every {kind.one} is seen equally often, whatever repeats it asks for."
    ]


def _caption_like(name: str) -> bool:
    file = PurePosixPath(name).name
    return (is_table(file) or file.lower().endswith(CAPTION_SUFFIXES)) and not _ABOUT.match(file)
