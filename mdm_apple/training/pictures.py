"""The pictures of a run in their order; a resumed run sees the same ones.

Which picture a row of a step sees depends on the seed, the step and this list alone. So a resumed
run keeps the list that it began with, whatever has become of the folder. A picture that no finished
step has looked at may have been mended or removed since. The place of a removed one is a hole, and
the next picture stands in for it.

Input: a `Job` and its folder as it is now. Output: a `Lineup`, or a refusal that names pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tqdm import tqdm

from mdm_apple.data.batches import BatchPlan, validation_rows
from mdm_apple.data.dataset import BadPictureError, DataError, Dataset, File, Pictures
from mdm_apple.data.decode_all import bad_pictures
from mdm_apple.data.folder import folder_fingerprint
from mdm_apple.data.listing import named
from mdm_apple.data.read_picture import shown
from mdm_apple.data.stills import clip_rows
from mdm_apple.errors import MdmError
from mdm_apple.storage import model_folder
from mdm_apple.training.picture_record import Noted, Record, read_record
from mdm_apple.training.run_folder import steps_done
from mdm_apple.training.start import ANEW, Job

VALIDATION_PICTURES = 64  # held-out pictures that are looked at
NAMED = 5


@dataclass(frozen=True)
class Lineup:
    """What a run sees.

    dataset: its pictures in order. meta: what each save notes about them. record: what the first
    save writes beside them; None if it is there, or if the pictures do not come from a folder.
    remarks: sentences for the user.
    """

    dataset: Pictures
    meta: Mapping[str, object]
    record: Record | None = None
    remarks: list[str] = field(default_factory=list[str])


def lineup_of(job: Job, dataset: Pictures) -> Lineup:
    """The pictures that a run begins with, or goes on with.

    Args:
        dataset: the pictures that the job names, as they are now.

    Raises MdmError if the finished steps of a resumed run would have seen other pictures.
    """
    if not isinstance(dataset, Dataset):  # an index of shards; it never changes
        return _of_index(job, dataset)
    if not job.resume:
        return _fresh(job, dataset)
    saved = model_folder.load_training_meta(job.out)
    record = read_record(job.out, saved.get("pictures")) if dataset.files else None
    if record is not None:
        return _Resumed(job, dataset, saved, record).lineup()
    if dataset.files and saved.get("fingerprint") == dataset.fingerprint:
        record = Record.of(dataset)  # of a run that noted none
        noted = saved | {"pictures": record.sha256()}
        return dataclasses.replace(_Resumed(job, dataset, noted, record).lineup(), record=record)
    lineup = _fresh(job, dataset)
    if saved.get("fingerprint") != lineup.dataset.fingerprint:
        raise _others(job, [])
    return lineup


def _of_index(job: Job, pictures: Pictures) -> Lineup:
    if job.resume:
        saved = model_folder.load_training_meta(job.out)
        if saved.get("fingerprint") != pictures.fingerprint:
            raise _others(job, [])
    return Lineup(pictures, {"fingerprint": pictures.fingerprint})


def skips_bad(job: Job) -> bool:
    """Whether bad pictures are left out: if asked for now, or when the run began."""
    if job.skip_bad or not job.resume:
        return job.skip_bad
    return model_folder.load_training_meta(job.out).get("skip_bad") is True


def rows_of_data(job: Job) -> int:
    """Rows of a batch that --data fills; the others are for the pictures beside clips."""
    rows = job.train.batch_size
    return rows if job.pictures is None else clip_rows(job.config, rows)


def _fresh(job: Job, dataset: Dataset) -> Lineup:
    remarks: list[str] = []
    meta: dict[str, object] = {}
    if job.skip_bad:
        dataset, remarks = without_bad(dataset, job.quiet)
        meta["skip_bad"] = True
    meta["fingerprint"] = dataset.fingerprint
    if not dataset.files:
        return Lineup(dataset, meta, None, remarks)
    record = Record.of(dataset)
    return Lineup(dataset, meta | {"pictures": record.sha256()}, record, remarks)


def without_bad(dataset: Dataset, quiet: bool) -> tuple[Dataset, list[str]]:
    """The pictures that can be decoded, and a remark on the others.

    Raises DataError if there are none. Of data that is drawn, none is bad.
    """
    bad = _checked(dataset, range(len(dataset.files)), quiet)
    found = {dataset.files[index].name: str(error) for index, error in bad.items()}
    left_out = dataset.left_out | found
    kept = [index for index in range(len(dataset)) if index not in bad]
    if not kept:
        first = next(iter(left_out.values())).removesuffix(".")
        if len(left_out) == 1:
            raise DataError(f"{first}; there is no other picture.")
        raise DataError(f"{first}; none of the {len(left_out)} pictures can be used.")
    if bad:
        captions = dataset.captions()
        files = [(dataset.files[index], captions[index]) for index in kept]
        fingerprint = folder_fingerprint(dataset.side, files)
        dataset = dataset.chosen(kept, fingerprint, left_out)
    if not left_out:
        return dataset, []
    total = len(left_out) + len(kept)
    verb = "is" if len(left_out) == 1 else "are"
    reasons = " ".join(list(left_out.values())[:NAMED])
    more = (
        f" {len(left_out) - NAMED} more have reasons of their own." if len(left_out) > NAMED else ""
    )
    return dataset, [
        f"pictures: {len(left_out)} of {total} {verb} bad and left out{named([*left_out])}: "
        f"{reasons}{more}"
    ]


class _Resumed:
    """Finds the pictures that a run began with in the folder as it is now."""

    def __init__(
        self, job: Job, dataset: Dataset, saved: Mapping[str, Any], record: Record
    ) -> None:
        self._job, self._dataset, self._saved = job, dataset, saved
        self._left_out = set(record.left_out)
        self._holes, self._mended = _deviations(job, saved, len(record.pictures))
        self._noted = [
            Noted(self._mended.get(row, noted.file), noted.caption)
            for row, noted in enumerate(record.pictures)
        ]
        count, train = len(self._noted), job.train
        held_out = validation_rows(count, train.validation_share, train.seed)
        self._held_out = [int(row) for row in held_out]
        plan = BatchPlan(count, rows_of_data(job), train.seed, held_out)
        done = steps_done(saved, train.steps, job.out, ANEW)
        looked_at = {*plan.seen(done), *self._held_out[:VALIDATION_PICTURES]}
        stand_ins = self._stand_ins(set(range(count)) - self._holes)
        self._seen = {stand_ins[row] for row in looked_at}
        self._gone: list[str] = []
        self._changed: list[str] = []

    def lineup(self) -> Lineup:
        places = self._places()
        if self._job.skip_bad:
            self._drop_bad(places)
        order = [places[row] for row in self._stand_ins(places)]
        dataset = self._dataset
        if order != list(range(len(dataset))):
            dataset = dataset.chosen(order, str(self._saved["fingerprint"]))
        return Lineup(dataset, self._meta(), None, self._remarks())

    def _places(self) -> dict[int, int]:
        """Where the picture of each row is now. Raises MdmError for what no run may change."""
        files, captions = self._dataset.files, self._dataset.captions()
        free: dict[str, list[int]] = {}
        for place, file in enumerate(files):
            free.setdefault(file.name, []).append(place)
        places: dict[int, int] = {}
        missing: list[int] = []
        refused: list[str] = []
        for row, noted in enumerate(self._noted):
            here = free.get(noted.file.name)
            if not here:
                missing.append(row)
                continue
            # a table may name a picture twice, with two captions
            place = next((p for p in here if captions[p] == noted.caption), here[0])
            here.remove(place)
            same_file = files[place].bytes == noted.file.bytes
            if row in self._holes:
                continue
            if captions[place] != noted.caption:
                refused.append(f"{shown(noted.file.name)} has another caption")
            elif not same_file and row in self._seen:
                refused.append(f"{shown(noted.file.name)} is another picture")
            else:
                places[row] = place
                if not same_file:
                    self._mend(row, files[place])
        unused = [place for some in free.values() for place in some]
        by_stem = {(_stem(files[place].name), captions[place]): place for place in unused}
        for row in missing:
            noted = self._noted[row]
            name = noted.file.name
            again = by_stem.pop((_stem(name), noted.caption), None)  # as a file of another kind
            if row in self._holes:
                continue
            if row in self._seen and name not in self._dataset.left_out:
                refused.append(f"{shown(name)} is gone")
            elif again is not None:
                places[row] = again
                self._mend(row, files[again])
            else:
                self._holes.add(row)
                self._gone.append(name)
        taken = {*places.values()}
        refused += [
            f"{shown(files[place].name)} is new"
            for place in unused
            if place not in taken and files[place].name not in self._left_out
        ]
        if refused:
            raise _others(self._job, refused)
        return places

    def _mend(self, row: int, file: File) -> None:
        self._mended[row] = file
        self._changed.append(file.name)

    def _drop_bad(self, places: dict[int, int]) -> None:
        """Decode what was not decoded before; the places of bad pictures become holes."""
        files = self._dataset.files
        unknown = {
            row: place for row, place in places.items() if not self._known(row, files[place])
        }
        bad = _checked(self._dataset, list(unknown.values()), self._job.quiet)
        for row, place in unknown.items():
            if place in bad:
                del places[row]
                self._holes.add(row)
                self._gone.append(files[place].name)

    def _known(self, row: int, file: File) -> bool:
        """Whether a finished step or a check has decoded this very file."""
        before = self._noted[row].file
        decoded = row in self._seen or self._saved.get("skip_bad") is True
        return decoded and (before.bytes, before.mtime_ns) == (file.bytes, file.mtime_ns)

    def _stand_ins(self, filled: Collection[int]) -> list[int]:
        """For each row the next one that has a picture, from itself on; held-out ones apart."""
        found = list(range(len(self._noted)))
        held_out = set(self._held_out)
        for alike in (self._held_out, [row for row in found if row not in held_out]):
            following = next((row for row in alike if row in filled), None)
            if alike and following is None:
                raise _others(self._job, [f"{shown(self._noted[alike[0]].file.name)} is gone"])
            for row in reversed(alike):
                following = row if row in filled else following
                found[row] = following or 0
        return found

    def _meta(self) -> dict[str, object]:
        meta: dict[str, object] = {name: self._saved[name] for name in ("fingerprint", "pictures")}
        if self._job.skip_bad:
            meta["skip_bad"] = True
        if self._holes:
            meta["holes"] = sorted(self._holes)
        if self._mended:
            meta["mended"] = {str(row): dataclasses.astuple(f) for row, f in self._mended.items()}
        return meta

    def _remarks(self) -> list[str]:
        stay = sorted({file.name for file in self._dataset.files} & self._left_out)
        found = (
            (self._gone, "can no longer be used, and the next ones take their places"),
            (self._changed, "that no step had used have changed, and are used as they are now"),
            (stay, "were bad when the run began, and stay left out"),
        )
        parts = [f"{len(names)} {text}{named(names)}" for names, text in found if names]
        return [f"pictures: {'; '.join(parts)}."] if parts else []


def _checked(dataset: Dataset, indices: Sequence[int], quiet: bool) -> dict[int, BadPictureError]:
    """The bad ones of these pictures, found by decoding them all."""
    if not indices:
        return {}
    with tqdm(total=len(indices), desc="checking", unit="picture", disable=quiet) as bar:
        return bad_pictures(dataset, indices, bar.update)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _others(job: Job, which: Sequence[str]) -> MdmError:
    more = f" and {len(which) - NAMED} more" if len(which) > NAMED else ""
    changed = f" ({', '.join(which[:NAMED])}{more})" if which else ""
    return MdmError(
        f"{job.out}: was trained on other pictures than --data has now{changed}; restore them, or "
        "start anew with --init."
    )


def _deviations(job: Job, saved: Mapping[str, Any], count: int) -> tuple[set[int], dict[int, File]]:
    """The holes, and the files in the place of others, of earlier resumptions."""
    try:
        holes = set(_rows(saved.get("holes", []), count))
        mended = saved.get("mended", {})
        files = [File(str(name), int(size), int(mtime)) for name, size, mtime in mended.values()]
        return holes, dict(zip(_rows(mended, count), files, strict=True))
    except (TypeError, ValueError, AttributeError):
        raise MdmError(f"{job.out}: training.json is damaged; {ANEW}.") from None


def _rows(written: Iterable[Any], count: int) -> list[int]:
    """Rows below `count`; raises ValueError for others."""
    rows = [int(row) for row in written]
    if not all(0 <= row < count for row in rows):
        raise ValueError
    return rows
