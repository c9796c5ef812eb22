"""A distillation from a teacher's folder to a student's, for either backend. No picture is read.

Input: a `DistillJob`: a teacher and captions. Output: the student's model folder, with the
teacher's frozen text encoder. An interrupted run resumes bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.strict_json import from_dict
from mdm_apple.config.types import Say
from mdm_apple.data.batches import BatchPlan
from mdm_apple.data.dataset import hash_fields
from mdm_apple.errors import MdmError
from mdm_apple.sampling.settings import student_sampling, write_sampling
from mdm_apple.storage import model_folder
from mdm_apple.storage.atomic_folder import finish_save, has_file, verify_files
from mdm_apple.text.captions import CAPTIONS, read_captions, write_captions
from mdm_apple.text.unread import tokenizer_in_use, unread_remarks
from mdm_apple.training.boot import BootBatch, BootConfig, BootDraws, student_config
from mdm_apple.training.launch import launch_remarks
from mdm_apple.training.learner import Learner, Snapshot
from mdm_apple.training.loop import train
from mdm_apple.training.memory_estimate import check_memory
from mdm_apple.training.parts import check_parts, rows_of
from mdm_apple.training.run_folder import (
    as_it_was,
    last_save,
    refuse_changes,
    refuse_parted,
    refuse_running,
    steps_done,
    stop_on_interrupt,
)
from mdm_apple.training.settings import TrainConfig

ANEW = "start anew"  # advice when a run cannot be resumed


@dataclass(frozen=True)
class DistillJob:
    """The teacher, the captions, and the folder for the student."""

    teacher: Path
    out: Path
    train: TrainConfig
    boot: BootConfig
    captions: Path | None = None  # None: those beside the teacher
    features: Path | None = None
    text_encoder: Path | None = None
    resume: bool = False
    quiet: bool = False


# (configuration of the student, job) -> a learner whose student starts with the teacher's weights
OpenBootLearner = Callable[[ModelConfig, DistillJob], Learner[BootBatch]]


def distill(
    job: DistillJob, open_learner: OpenBootLearner, say: Say = lambda _: None
) -> ModelConfig:
    """Distil and return the saved configuration. Raises MdmError.

    say: told what the student does not see of its captions.
    """
    refuse_running(job.out)
    teacher = model_folder.load_model_config(job.teacher)
    sha256 = teacher_sha256(job.teacher)
    config = _with_source(student_config(teacher, job.boot), sha256)
    captions = captions_of(job, config)
    if teacher.text is not None:
        tokenizer = tokenizer_in_use(job.teacher, teacher, job.text_encoder)
        for remark in unread_remarks("captions", captions, tokenizer, teacher.text.max_tokens):
            say(remark)
    for remark in launch_remarks():
        say(remark)
    meta = {
        "train": dataclasses.asdict(job.train),
        "boot": dataclasses.asdict(job.boot),
        "teacher": sha256,
        "captions": hash_fields(captions),
    }
    if job.resume:
        finish_save(job.out)
    begun_from = last_save(job.out)
    resumed = _resumed(job, config, meta) if job.resume else None
    learner = open_learner(config, job)
    check_parts(job.train, config.diffusion, learner.world)
    check_memory(config, job.train, learner.world)
    start = 0
    if resumed is not None:
        start, snapshot = resumed
        learner.restore(snapshot)
    refuse_parted(job.out, learner, begun_from, start)
    encoder = model_folder.averaged_encoder(job.teacher)
    own_tokenizer = None if encoder is None else model_folder.load_tokenizer(job.teacher)
    saved = Event()

    def save(snapshot: Snapshot, done: int) -> None:
        model_folder.save_model(
            job.out,
            config,
            snapshot.weights,
            ema=snapshot.ema,
            text_encoder=encoder,
            tokenizer=own_tokenizer,
            training=model_folder.Training(dict(snapshot.optimizer), {**meta, "step": done}),
        )
        if not saved.is_set() and config.text is not None:
            write_captions(job.out / CAPTIONS, captions)
        saved.set()

    plan = BatchPlan(len(captions), job.train.batch_size, job.train.seed)
    steps = config.diffusion.schedule.num_steps
    draws = BootDraws(captions, plan, config.sides, steps, job.boot)
    rows = rows_of(job.train, learner.rank, learner.world)
    batches = (draws.batch(step, rows) for step in range(start, job.train.steps))
    place = as_it_was(job.out, saved, begun_from) if learner.rank == 0 else nullcontext()
    with stop_on_interrupt() as stop, place:
        train(learner, batches, job.train, job.out, start, save, stop, quiet=job.quiet)
    if learner.rank == 0 and config.distilled is not None:
        write_sampling(job.out, student_sampling(config.distilled, steps=1))
    return config


def resumed_boot(out: Path, asked: BootConfig, as_before: Collection[str]) -> BootConfig:
    """The student of an interrupted run, with `as_before` from the run; the rest is compared later.

    as_before: settings that the caller left out.
    """
    finish_save(out)
    saved = model_folder.load_training_meta(out).get("boot")
    before = from_dict(BootConfig, saved, f"{out}: training.json")
    return dataclasses.replace(asked, **{name: getattr(before, name) for name in as_before})


def captions_of(job: DistillJob, config: ModelConfig) -> tuple[str, ...]:
    """The student's prompts; empty captions for a model without text."""
    if config.text is None:
        if job.captions is not None:
            raise MdmError(f"captions: {job.teacher} takes no text; leave out --captions.")
        return ("",) * job.train.batch_size
    if job.captions is not None:
        return read_captions(job.captions)
    beside = job.teacher / CAPTIONS
    if not beside.is_file():
        raise MdmError(
            f"captions: {job.teacher} holds no {CAPTIONS}; give --captions FILE with one per line."
        )
    return read_captions(beside)


def teacher_sha256(folder: Path) -> str:
    """Hash of the weights that a student learns from: the averaged ones, if any."""
    sha256 = model_folder.weights_sha256(folder)
    if sha256 is None:
        raise MdmError(f"{folder}: holds no weights.")
    return sha256


def _with_source(config: ModelConfig, sha256: str) -> ModelConfig:
    note = f"Distilled by BOOT from weights with SHA-256 {sha256}."
    before = config.provenance.notes
    notes = f"{before} {note}" if before else note
    return dataclasses.replace(
        config, provenance=dataclasses.replace(config.provenance, notes=notes)
    )


def _resumed(
    job: DistillJob, config: ModelConfig, meta: Mapping[str, object]
) -> tuple[int, Snapshot]:
    """Steps done and the state after them; refuses to continue a run with other settings."""
    out = job.out
    verify_files(out)
    state = model_folder.load_training(out)
    where = f"{out}: training.json"
    refuse_changes(from_dict(TrainConfig, state.meta.get("train"), where), job.train, out, ANEW)
    refuse_changes(from_dict(BootConfig, state.meta.get("boot"), where), job.boot, out, ANEW)
    for name in ("teacher", "captions"):
        if state.meta.get(name) != meta[name]:
            raise MdmError(
                f"{name}: the run in {out} was started with a different one; give the same."
            )
    if model_folder.load_model_config(out) != config:
        raise MdmError(
            f"{out}: config.json does not belong to a student of this teacher; start anew."
        )
    step = steps_done(state.meta, job.train.steps, out, ANEW)
    ema = model_folder.load_weights(out, "ema") if has_file(out, "ema.safetensors") else None
    return step, Snapshot(model_folder.load_weights(out), ema, None, None, state.tensors)
