"""A training run from its settings to a finished model folder, for either backend."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import numpy as np
from tqdm import tqdm

from mdm_apple.config.model import ModelConfig
from mdm_apple.data.batches import (
    Batch,
    BatchPlan,
    Draws,
    Loader,
    Plan,
    make_batch,
)
from mdm_apple.data.caption_layout import list_captions
from mdm_apple.data.clips.open_clips import Progress
from mdm_apple.data.dataset import BadPictureError, DataError, Dataset, Pictures, with_captions
from mdm_apple.data.folder_tree import scan
from mdm_apple.data.kinds import CLIPS, PICTURES
from mdm_apple.data.open import names_folder, open_dataset
from mdm_apple.data.read_picture import shown
from mdm_apple.data.shards.shard_pictures import ShardPictures
from mdm_apple.data.stills import MixedPlan, with_stills
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.pictures import save_png, tile, to_pixels
from mdm_apple.sampling.settings import forget_sampling
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage import model_folder
from mdm_apple.text.captions import CAPTIONS, write_captions
from mdm_apple.text.tokenizer import Tokenizer
from mdm_apple.text.unread import tokenizer_in_use, unread_remarks
from mdm_apple.training.chosen_data import OPTIONS
from mdm_apple.training.dropout import BY_ROW, DROPOUT
from mdm_apple.training.launch import launch_remarks
from mdm_apple.training.learner import PictureLearner, Snapshot
from mdm_apple.training.loop import train
from mdm_apple.training.memory_estimate import check_memory
from mdm_apple.training.on_shards import (
    held_out,
    index_of,
    lanes_noted,
    pictures_of_index,
    refuse_order,
    shard_plan,
)
from mdm_apple.training.parts import check_parts, most_rows, rows_of
from mdm_apple.training.picture_record import read_record, write_record
from mdm_apple.training.pictures import (
    VALIDATION_PICTURES,
    Lineup,
    lineup_of,
    rows_of_data,
    skips_bad,
    without_bad,
)
from mdm_apple.training.run_folder import as_it_was, last_save, refuse_parted, stop_on_interrupt
from mdm_apple.training.start import (
    Job,
    Start,
    as_started,
    check_job,
    chosen_data,
    starting_model,
    starting_point,
)

GRID_PROMPTS = 16
GRID_STEPS = 20
STILLS = "stills"  # in training.json: the fingerprint of the pictures beside clips

# (configuration, job, tokenizer, start) -> a learner with its weights in place
OpenLearner = Callable[[ModelConfig, Job, Tokenizer | None, Start], PictureLearner]


def run_job(job: Job, open_learner: OpenLearner, say: Callable[[str], None]) -> Run:
    """Train and write the model folder. Raises MdmError."""
    check_job(job)
    if index_of(job) is None:
        refuse_order(job)  # also on a run that is resumed, which would take the order it had
    begun_from = last_save(job.out)
    job = dataclasses.replace(as_started(job), skip_bad=skips_bad(job))
    lineup = lineup_of(job, job_pictures(job))
    stills, left_out = job_stills(job)
    dataset = lineup.dataset
    warnings = dataset.warnings
    if stills is not None and isinstance(dataset, Dataset):
        dataset = with_stills(dataset, stills, job.config.frames)
        warnings = [*warnings, *stills.warnings]
    for remark in (*warnings, *lineup.remarks, *left_out, *launch_remarks()):
        say(remark)
    config, tokenizer = starting_model(job, dataset)
    for remark in unread_captions(config, job, dataset, tokenizer):
        say(remark)
    start = starting_point(job, config)
    learner = open_learner(config, job, tokenizer, start)
    refuse_parted(job.out, learner, begun_from, start.step)
    if start.snapshot is not None:
        learner.restore(start.snapshot)
    run = None
    try:
        run = Run(job, config, lineup, tokenizer, learner, dataset, stills)
        run.train(start.step, begun_from)
        if isinstance(dataset, ShardPictures):
            for remark in dataset.replacements():
                say(remark)
    except BadPictureError as error:
        goes_on = job.resume or (run is not None and run.has_saved)
        raise _with_advice(error, job, goes_on) from None
    return run


def _with_advice(error: BadPictureError, job: Job, goes_on: bool) -> DataError:
    """The refusal of a bad picture, and how to find and to leave out all of them."""
    sentence = str(error).removesuffix(".")
    then = "go on with --resume" if goes_on else "start again"
    if job.skip_bad or index_of(job) is not None:
        return DataError(f"{sentence}, and {then}.")
    beside = job.pictures is not None and sentence.startswith(shown(Path(job.pictures).resolve()))
    folder = str(job.pictures if beside else job.data)
    return DataError(
        f"{sentence}, or leave out all bad pictures with --skip-bad, and {then}; "
        f"`mdm data check {shlex.quote(shown(folder))}` names them all."
    )


def unread_captions(
    config: ModelConfig, job: Job, dataset: Pictures, tokenizer: Tokenizer | None
) -> list[str]:
    """Sentences on what the model does not see of its captions.

    tokenizer: of a trainable encoder; None for a frozen one, which has its own.
    """
    if config.text is None:
        return []
    used = tokenizer or tokenizer_in_use(job.init or job.out, config, job.text_encoder)
    return unread_remarks("captions", dataset.captions(), used, config.text.max_tokens)


def job_pictures(job: Job) -> Pictures:
    """The captioned pictures or clips that a job names; clips are decoded now, but only once."""
    if (index := index_of(job)) is not None:
        return pictures_of_index(job, index)
    refuse_order(job)
    with tqdm(desc="decoding", unit="file", disable=job.quiet, delay=1) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return _chosen(job, progress)


def _chosen(job: Job, progress: Progress) -> Dataset:
    dataset = open_dataset(
        job.data,
        job.config.side,
        background=job.background or "white",
        skin_tones=bool(job.skin_tones),
        # pictures beside moving drawings may be bad, and drawings never
        skip_bad=job.skip_bad and (names_folder(job.data) or not names_folder(job.pictures)),
        frames=job.config.frames,
        fps=job.config.fps,
        clips_per_file=job.clips_per_file,
        progress=progress,
    )
    if job.captions is None:
        return dataset
    unknown = set(job.captions) - set(dataset.captions())
    left_out = _captions_left_out(job, dataset) if unknown else set[str]()
    return with_captions(dataset, job.captions, left_out)


def job_stills(job: Job) -> tuple[Dataset | None, list[str]]:
    """The pictures beside the clips of a job, of the side of a frame, and remarks on bad ones.

    None for a job without. Raises MdmError if the model has no place for them, or a resumed run had
    others.
    """
    if job.pictures is None:
        return None, []
    rows_of_data(job)  # refuses a model without a place for them
    _, side = job.config.clip_shapes[0]
    remarks: list[str] = []
    skip_bad = job.skip_bad and names_folder(job.pictures)
    stills = open_dataset(job.pictures, side, skip_bad=skip_bad)
    if skip_bad:
        stills, remarks = without_bad(stills, job.quiet)
    if job.resume:
        saved = model_folder.load_training_meta(job.out)
        if saved.get(STILLS) != stills.fingerprint:
            raise MdmError(
                f"{job.out}: was trained beside other pictures than --pictures has now; restore "
                "them, or start anew with --init."
            )
    return stills, remarks


def _captions_left_out(job: Job, dataset: Dataset) -> set[str]:
    """The captions of bad pictures of a folder, and of pictures that a run had when it began."""
    found = set[str]()
    if dataset.left_out and isinstance(job.data, str):
        kind = PICTURES if job.config.frames == 1 else CLIPS
        pairs = list_captions(scan(Path(job.data).resolve(), kind)).pairs
        found |= {caption for name, caption in pairs if name in dataset.left_out}
    if job.resume and dataset.files:
        saved = model_folder.load_training_meta(job.out)
        record = read_record(job.out, saved.get("pictures"))
        found |= {noted.caption for noted in record.pictures} if record is not None else set()
    return found


class Run:
    """One run: a learner, the pictures it sees, and the folder it fills.

    config: as saved, with the tokenizer's hash. learner.rank: the index of this process.
    """

    def __init__(
        self,
        job: Job,
        config: ModelConfig,
        lineup: Lineup,
        tokenizer: Tokenizer | None,
        learner: PictureLearner,
        dataset: Pictures,
        stills: Dataset | None,
    ) -> None:
        """dataset: of the lineup, with the stills behind it.

        Raises ConfigError if the batch cannot be divided as the model needs it."""
        check_parts(job.train, config.diffusion, learner.world)
        check_memory(config, job.train, learner.world)
        self.config, self.learner = config, learner
        self._job, self._lineup, self._tokenizer = job, lineup, tokenizer
        self._dataset, self._stills = dataset, stills
        self._saved = Event()
        self._held_out = held_out(job, lineup.dataset)
        self._draws = Draws(
            job.train.seed,
            config.sides,
            config.diffusion,
            job.train.caption_dropout,
            job.train.white_headroom,
        )
        self._planned = self._plan()
        self._validation = self._validation_batch()

    @property
    def has_saved(self) -> bool:
        """Whether the folder holds a save of this run."""
        return self._saved.is_set()

    def train(self, first_step: int, begun_from: bytes | None) -> None:
        """Run all steps from `first_step` on; a failure before the first save leaves no trace.

        begun_from: see `as_it_was`.
        """
        job, learner = self._job, self.learner
        place = as_it_was(job.out, self._saved, begun_from) if learner.rank == 0 else nullcontext()
        with self._loader(first_step) as loader, stop_on_interrupt() as stop, place:
            train(
                learner,
                loader,
                job.train,
                job.out,
                first_step,
                self.save,
                stop,
                self.validate if self._validation is not None else None,
                self.draw,
                job.tensorboard,
                job.quiet,
            )

    def save(self, snapshot: Snapshot, done: int) -> None:
        """Write a snapshot that means "all steps below `done` are done"."""
        tokenizer = None if self._tokenizer is None else self._tokenizer.model
        data = self._job.data
        state = {
            "train": dataclasses.asdict(self._job.train),
            "data": data if isinstance(data, str) else type(data).__name__,
            OPTIONS: chosen_data(self._job).as_json(),
            **self._lineup.meta,
            **lanes_noted(self._planned),
            **({DROPOUT: BY_ROW} if self.learner.dropout_by_row else {}),
            **({} if self._stills is None else {STILLS: self._stills.fingerprint}),
            "step": done,
        }
        model_folder.save_model(
            self._job.out,
            self.config,
            snapshot.weights,
            ema=snapshot.ema,
            text_encoder=snapshot.encoder,
            text_encoder_ema=snapshot.encoder_ema,
            tokenizer=None if snapshot.encoder is None else tokenizer,
            training=model_folder.Training(dict(snapshot.optimizer), state),
        )
        if not self._saved.is_set() and not self._job.resume:
            forget_sampling(self._job.out)
        if not self._saved.is_set() and self._lineup.record is not None:
            write_record(self._job.out, self._lineup.record)
        if not self._saved.is_set() and self.config.text is not None:
            captions = self._dataset.captions()  # for a later distillation
            write_captions(self._job.out / CAPTIONS, captions)
        self._saved.set()

    def draw(self, path: Path) -> None:
        """Write a grid of samples from the averaged weights to a file."""
        captions = self._lineup.dataset.captions()
        shown = captions[:: max(1, len(captions) // GRID_PROMPTS)][:GRID_PROMPTS]
        prompts = [Prompt(caption, seed) for seed, caption in enumerate(shown)]
        steps = min(GRID_STEPS, self.config.diffusion.schedule.num_steps)
        sampler = SamplerConfig("ddim", num_steps=steps, guidance_scale=3.0)
        rows = most_rows(self._job.train, self.learner.world)
        at_once = max(1, rows // 2)  # guidance doubles the rows
        with self.learner.averaged() as runtime:
            parts = [
                finish(generate(runtime, prompts[first : first + at_once], sampler))[0]
                for first in range(0, len(prompts), at_once)
            ]
        save_png(path, tile(to_pixels(np.concatenate(parts)), columns=4))

    def validate(self) -> float:
        """Loss of the averaged weights on the held-out pictures; all processes call it."""
        assert self._validation is not None, "called only if pictures are held out"
        rows, at_once = len(self._validation), most_rows(self._job.train, self.learner.world)
        total = 0.0
        for first in range(0, rows, at_once):
            part = self._validation.rows(first, min(first + at_once, rows))
            total += self.learner.validate(part) * len(part)
        total, rows = self.learner.totals([total, rows])
        return total / rows

    def _loader(self, first_step: int) -> Loader:
        train_config = self._job.train
        return Loader(
            self._dataset,
            self._planned,
            self._draws,
            rows=rows_of(train_config, self.learner.rank, self.learner.world),
            start_step=first_step,
            stop_step=train_config.steps,
            workers=self._job.workers,
        )

    def _plan(self) -> Plan:
        """What each step sees: clips or pictures, or first the ones and then the others."""
        train, count = self._job.train, len(self._lineup.dataset)
        if isinstance(self._dataset, ShardPictures):
            return shard_plan(self._job, self._dataset)
        if self._stills is None:
            return BatchPlan(count, train.batch_size, train.seed, self._held_out)
        rows = rows_of_data(self._job)
        clips = BatchPlan(count, rows, train.seed, self._held_out)
        stills = BatchPlan(len(self._stills), train.batch_size - rows, train.seed)
        return MixedPlan(clips, stills, count)

    def _validation_batch(self) -> Batch | None:
        """A fixed batch of held-out pictures, shared between the processes."""
        chosen = self._held_out[:VALIDATION_PICTURES]
        if not len(chosen):
            return None
        rows = np.arange(self.learner.rank, len(chosen), self.learner.world)  # perhaps none
        fixed = dataclasses.replace(self._draws, caption_dropout=0.0)
        return make_batch(self._dataset, chosen[rows], fixed, 2**31, rows)
