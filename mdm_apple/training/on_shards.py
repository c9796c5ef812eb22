"""A run on an index of shards: what its options may be, what is held out, what each step sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdm_apple.config.types import Indices
from mdm_apple.data.batches import BatchPlan, Plan, validation_rows
from mdm_apple.data.dataset import DataError, Pictures, evenly_spread
from mdm_apple.data.shards.index_files import is_index
from mdm_apple.data.shards.plans import LanePlan, plan_of, shards_held_out
from mdm_apple.data.shards.shard_pictures import ShardPictures, open_shards
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.storage import model_folder
from mdm_apple.training.pictures import VALIDATION_PICTURES
from mdm_apple.training.start import ANEW, Job

LANES = "lanes"  # in training.json


def index_of(job: Job) -> Path | None:
    """The index of shards that a job names as its data; None for other data."""
    return Path(job.data) if isinstance(job.data, str) and is_index(Path(job.data)) else None


def pictures_of_index(job: Job, folder: Path) -> ShardPictures:
    """The pictures of an index. Raises MdmError for options that belong to other data."""
    if job.config.frames > 1:
        raise DataError(
            f"{folder}: holds pictures, and the model makes clips; give a folder of clips, or a "
            "model of pictures, such as --preset emoji."
        )
    others = {
        "captions": job.captions is not None,
        "background": job.background is not None,
        "skin-tones": bool(job.skin_tones),
        "clips-per-file": job.clips_per_file is not None,
        "pictures": job.pictures is not None,
    }
    for option, given in others.items():
        if given:
            raise ConfigError(
                f"{option}: does not apply to an index of shards; leave out --{option}."
            )
    if job.skip_bad:
        raise ConfigError(
            "skip-bad: would decode every picture first; take --bad-pictures replace for an index "
            "of shards."
        )
    return open_shards(folder, job.config.side, job.bad_pictures)


def refuse_order(job: Job) -> None:
    """Refuse options that only an index of shards has."""
    for option, given in (("order", job.order), ("bad-pictures", job.bad_pictures)):
        if given is not None:
            raise ConfigError(
                f"{option}: applies to an index of shards, which mdm index makes; leave out "
                f"--{option}."
            )


def held_out(job: Job, pictures: Pictures) -> Indices:
    """Pictures held out for validation, ascending; of whole shards no more than are looked at."""
    train = job.train
    if not isinstance(pictures, ShardPictures) or job.order == "folder":
        return validation_rows(len(pictures), train.validation_share, train.seed)
    index = pictures.index
    shards = shards_held_out(len(index.samples), train.validation_share, train.seed)
    ends = np.cumsum(index.samples[shards])
    if not len(ends):
        return np.empty(0, np.int64)
    places = np.array(evenly_spread(int(ends[-1]), VALIDATION_PICTURES), np.int64)
    within = np.searchsorted(ends, places, "right")
    before = np.concatenate([[0], ends])[within]
    return index.starts[shards][within] + places - before


def shard_plan(job: Job, pictures: ShardPictures) -> Plan:
    """Which pictures each step of a run sees."""
    train, index = job.train, pictures.index
    share, seed = train.validation_share, train.seed
    if job.order == "folder":
        rows = validation_rows(len(pictures), share, seed)
        return BatchPlan(len(pictures), train.batch_size, seed, rows)
    shards = shards_held_out(len(index.samples), share, seed)
    order, lanes = job.order or "lanes", None
    if job.resume and order == "lanes":
        lanes = model_folder.load_training_meta(job.out).get(LANES)
        if type(lanes) is not int:
            raise MdmError(f"{job.out}: training.json is damaged; {ANEW}.")
    return plan_of(order, index.starts, train.batch_size, seed, shards, lanes)


def lanes_noted(plan: Plan) -> dict[str, object]:
    """What each save notes of a plan: a later version may choose another number of lanes."""
    return {LANES: plan.lanes} if isinstance(plan, LanePlan) else {}
