"""What training would see of a folder of clips; each file is decoded as training decodes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdm_apple.data.check import MUCH, Check, lost_share, reason_of, unused_files
from mdm_apple.data.clips.decode import Wanted
from mdm_apple.data.clips.open_clips import Progress, as_dataset, no_progress, read_clips
from mdm_apple.data.dataset import with_captions
from mdm_apple.data.folder_tree import scan
from mdm_apple.data.kinds import CLIPS, PICTURES


def check_clips(
    root: Path,
    wanted: Wanted,
    captions: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> Check:
    """Decode each file of a folder, or find it decoded.

    Args:
        captions: only clips with these.
        progress: called with the files done and their total.

    Raises DataError for a folder that is missing, empty or can be read in two ways, or of pictures.
    """
    found = read_clips(root, wanted, progress)
    folder, listing = found.folder, found.folder.listing
    opened = None
    if found.files or not (folder.faults or found.short):
        opened = as_dataset(found)
    if opened is not None and captions is not None:
        opened = with_captions(opened, captions)
    seen = (
        {(f.name, c) for f, c in zip(opened.files, opened.captions(), strict=True)}
        if opened
        else set()
    )
    used = [p for p in folder.pictures if (p.file.name, p.caption) in seen]
    side = wanted.frame_side
    alone, others = unused_files(folder)
    groups: dict[str, dict[str, None]] = {}
    for file in found.files:
        groups.setdefault(file.sha256, {})[file.picture.file.name] = None
    return Check(
        folder=folder.root,
        side=side,
        source=listing.source,
        dataset=opened,
        good=list(range(0 if opened is None else len(opened))),
        total=len(used) + len(found.short) + len(folder.faults),
        bad=dict(sorted((f.name, reason_of(f.error)) for f in folder.faults if not f.missing)),
        missing={fault.name: str(fault.error) for fault in folder.faults if fault.missing},
        without_caption=listing.unlisted,
        without_picture=alone,
        other_files=others,
        empty_captions=[p.file.name for p in used if not p.caption],
        too_small={p.file.name: min(p.size) for p in used if min(p.size) < side},
        cropped={p.file.name: lost for p in used if (lost := lost_share(p)) > MUCH},
        duplicates=[list(names) for names in groups.values() if len(names) > 1],
        gray=[],
        transparent=[],
        animated=[],
        remarks=listing.remarks,
        kind=CLIPS,
        too_short={file.picture.file.name: file.kept.found for file in found.short},
    )


def holds_clips(root: Path) -> bool:
    """Whether a folder has files that can only be clips, and none that can be a picture.

    Asked where no model says it. A folder that cannot be listed holds none; who reads it says why.
    """
    try:
        names = scan(root.resolve()).files
    except (OSError, RuntimeError):
        return False
    return any(map(CLIPS.has, names)) and not any(map(PICTURES.has, names))
