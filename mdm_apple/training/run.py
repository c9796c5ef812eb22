"""A training run from its settings to a finished model folder, for either backend.

Enters: a `Job`. Leaves: the model folder. Fresh, from another folder (`init`), around a smaller
trained model (`grow`), or where an interrupted run stopped (`resume`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.strict_json import from_dict
from mdm_apple.data.batches import Batch, BatchPlan, Draws, Loader, make_batch, validation_rows
from mdm_apple.data.open import Background, Dataset, open_dataset, with_captions
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.pictures import save_png, tile, to_pixels
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage import model_folder
from mdm_apple.storage.atomic_folder import finish_save, has_file, verify_files
from mdm_apple.text.captions import CAPTIONS, write_captions
from mdm_apple.text.tokenizer import Tokenizer, train_tokenizer
from mdm_apple.training.learner import Snapshot, Stepper
from mdm_apple.training.loop import SAMPLES, train
from mdm_apple.training.metrics import METRICS
from mdm_apple.training.run_folder import as_it_was, refuse_changes, steps_done, stop_on_interrupt
from mdm_apple.training.settings import TrainConfig, check_mixing, rows_of

Weights = Mapping[str, NDArray[np.float32]]

VALIDATION_PICTURES = 64
GRID_PROMPTS = 16
GRID_STEPS = 20
ANEW = "start anew with --init"  # what a run that cannot be resumed may do


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where it goes."""

    config: ModelConfig
    train: TrainConfig
    data: str
    out: Path
    resume: bool = False
    init: Path | None = None
    grow: Path | None = None
    features: Path | None = None
    text_encoder: Path | None = None
    captions: tuple[str, ...] | None = None  # only the pictures called so
    background: Background = "white"
    skin_tones: bool = False
    workers: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class Start:
    """Where a run begins: weights by name (None: fresh), and the state of an interrupted one."""

    step: int = 0
    weights: Weights | None = None  # of the network; for `grow` only those of the inner levels
    encoder: Weights | None = None
    snapshot: Snapshot | None = None


# (configuration, job, tokenizer, start) -> a stepper with its weights in place
OpenStepper = Callable[[ModelConfig, Job, Tokenizer | None, Start], Stepper]


@dataclass(frozen=True)
class Fitted:
    """The configuration that was saved, and which of several processes this one was."""

    config: ModelConfig
    rank: int


def fit(job: Job, open_stepper: OpenStepper, say: Callable[[str], None]) -> Fitted:
    """Train, and leave the model folder. Raises MdmError."""
    _check_resume(job)
    _check_text(job)
    dataset = open_dataset(
        job.data, job.config.side, background=job.background, skin_tones=job.skin_tones
    )
    if job.captions is not None:
        dataset = with_captions(dataset, job.captions)
    for warning in dataset.warnings:
        say(warning)
    tokenizer = _tokenizer(job, dataset)
    config = _with_tokenizer(_as_trained(job), tokenizer)
    start = _start(job, config, dataset)
    stepper = open_stepper(config, job, tokenizer, start)
    if start.snapshot is not None:
        stepper.restore(start.snapshot)
    check_mixing(job.train, config.diffusion, stepper.world)
    held_out = validation_rows(len(dataset), job.train.validation_share, job.train.seed)
    plan = BatchPlan(len(dataset), job.train.batch_size, job.train.seed, held_out)
    draws = Draws(
        job.train.seed,
        config.sides,
        config.diffusion,
        job.train.caption_dropout,
        job.train.white_headroom,
    )
    saved = Event()
    meta = {
        "train": dataclasses.asdict(job.train),
        "data": job.data,
        "fingerprint": dataset.fingerprint,
    }

    def save(snapshot: Snapshot, done: int) -> None:
        model_folder.save_model(
            job.out,
            config,
            snapshot.weights,
            ema=snapshot.ema,
            text_encoder=snapshot.encoder,
            text_encoder_ema=snapshot.encoder_ema,
            tokenizer=tokenizer.model if tokenizer and snapshot.encoder is not None else None,
            training=model_folder.Training(dict(snapshot.optimizer), {**meta, "step": done}),
        )
        if not saved.is_set() and config.text is not None:
            write_captions(job.out / CAPTIONS, dataset.captions())  # for a later distillation
        saved.set()

    def draw(path: Path) -> None:
        captions = dataset.captions()[:: max(1, len(dataset) // GRID_PROMPTS)][:GRID_PROMPTS]
        prompts = [Prompt(caption, seed) for seed, caption in enumerate(captions)]
        steps = min(GRID_STEPS, config.diffusion.schedule.num_steps)
        sampler = SamplerConfig("ddim", num_steps=steps, guidance_scale=3.0)
        with stepper.averaged() as runtime:
            pictures = finish(generate(runtime, prompts, sampler))[0]
        save_png(path, tile(to_pixels(pictures), columns=4))

    loader = Loader(
        dataset,
        plan,
        draws,
        rows=rows_of(job.train, stepper.rank, stepper.world),
        start_step=start.step,
        stop_step=job.train.steps,
        workers=job.workers,
    )
    place = as_it_was(job.out, saved) if stepper.rank == 0 else nullcontext()
    with loader, stop_on_interrupt() as stop, place:
        train(
            stepper,
            loader,
            job.train,
            job.out,
            start.step,
            save,
            stop,
            _validation(dataset, held_out, draws, stepper),
            draw,
            job.quiet,
        )
    return Fitted(config, stepper.rank)


def resumed_config(
    out: Path, train_config: TrainConfig, as_before: Collection[str] = ()
) -> tuple[ModelConfig, TrainConfig]:
    """Configuration of an interrupted run; its training settings but for the free ones.

    as_before: settings that nobody asked for, so that the saved ones hold.
    """
    finish_save(out)
    saved = model_folder.load_training(out).meta
    before = from_dict(TrainConfig, saved.get("train"), f"{out}: training.json")
    saved_ones = {name: getattr(before, name) for name in as_before}
    train_config = dataclasses.replace(train_config, **saved_ones)
    refuse_changes(before, train_config, out, ANEW)
    return model_folder.load_model_config(out), train_config


def common_prefix(weights: Mapping[str, object]) -> str:
    """'inner_unet.' as often as every name starts with it."""
    prefix = ""
    while all(name.startswith(prefix + "inner_unet.") for name in weights):
        prefix += "inner_unet."
    return prefix


def _check_text(job: Job) -> None:
    """Features from elsewhere are of no use to an encoder that learns along, or without text."""
    text = job.config.text
    if text is not None and not text.trainable:
        return
    for name, given in (("features", job.features), ("text-encoder", job.text_encoder)):
        if given is not None:
            why = "takes no text" if text is None else "learns its text encoder along"
            raise MdmError(f"{name}: this model {why}; leave out --{name}.")


def _check_resume(job: Job) -> None:
    if job.resume and (job.init or job.grow):
        raise ConfigError("resume: goes on from --out, so leave out --init and --grow.")
    if job.init and job.grow:
        raise ConfigError("init, grow: choose one of them.")


def _tokenizer(job: Job, dataset: Dataset) -> Tokenizer | None:
    """The tokenizer of an encoder that learns: from where the run starts, or a new one."""
    text = job.config.text
    if text is None or not text.trainable or text.encoder is None:
        return None
    source = job.out if job.resume else job.init or job.grow
    if source is not None:
        _check_encoder(source)
        return Tokenizer(model_folder.load_tokenizer(source), lowercase=text.lowercase)
    return train_tokenizer(dataset.captions(), text.encoder.vocab_size, lowercase=text.lowercase)


def _as_trained(job: Job) -> ModelConfig:
    """The configuration with what this run adds to it: mixed batches, a smaller model's text."""
    config = job.config
    if job.grow is not None:
        text = model_folder.load_model_config(job.grow).text
        if text and config.text and text.encoder == config.text.encoder:
            config = dataclasses.replace(config, text=text)
    mixed = config.mixed_training or config.diffusion.mixed_ratio is not None
    return dataclasses.replace(config, mixed_training=mixed)


def _check_encoder(source: Path) -> None:
    """Refuse a model whose encoder learned along and is not there, as after `mdm import`."""
    model_folder.load_model_config(source)  # refuses what is no model folder at all
    for name in ("tokenizer.model", "text_encoder.safetensors"):
        if not has_file(source, name):
            raise MdmError(
                f"{source}: holds no {name}, although this model's text encoder learns along; copy "
                "tokenizer.model and text_encoder.safetensors there from the run that the weights "
                "are of, or start anew with --preset or --config."
            )


def _with_tokenizer(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    if tokenizer is None or config.text is None:
        return config
    text = dataclasses.replace(config.text, tokenizer_sha256=tokenizer.sha256)
    return dataclasses.replace(config, text=text)


def _start(job: Job, config: ModelConfig, dataset: Dataset) -> Start:
    if job.resume:
        return _resumed(job, dataset)
    source = job.init or job.grow
    if source is None:
        return Start()
    weights = model_folder.load_weights(source, model_folder.averaged(source, "model"))
    if job.grow:
        weights = _inner_weights(config, model_folder.load_model_config(source), weights, source)
    return Start(weights=weights, encoder=model_folder.averaged_encoder(source))


def _resumed(job: Job, dataset: Dataset) -> Start:
    out = job.out
    verify_files(out)
    state = model_folder.load_training(out)
    if state.meta.get("fingerprint") != dataset.fingerprint:
        raise MdmError(
            f"{out}: was trained on other pictures than --data holds now; restore them, or start "
            "anew with --init."
        )
    step = steps_done(state, job.train.steps, out, ANEW)
    optional: dict[str, Any] = {
        name: model_folder.load_weights(out, name) if has_file(out, f"{name}.safetensors") else None
        for name in ("ema", "text_encoder", "text_encoder_ema")
    }
    snapshot = Snapshot(
        weights=model_folder.load_weights(out),
        ema=optional["ema"],
        encoder=optional["text_encoder"],
        encoder_ema=optional["text_encoder_ema"],
        optimizer=state.tensors,
    )
    return Start(step, snapshot.weights, snapshot.encoder, snapshot)


def _inner_weights(
    config: ModelConfig, smaller: ModelConfig, weights: Weights, source: Path
) -> Weights:
    """Weights of a trained smaller model under the names that they have as inner levels."""
    for depth, level in enumerate(config.model.levels):
        if depth and level == smaller.model:
            prefix = "inner_unet." * depth
            return {prefix + name: value for name, value in weights.items()}
    raise ConfigError(
        f"grow: {source} holds a {smaller.side} px model that is not an inner level of this one; "
        "its settings must equal those of an inner level."
    )


def _validation(
    dataset: Dataset, held_out: NDArray[np.int64], draws: Draws, stepper: Stepper
) -> list[Batch]:
    """Fixed batches of held-out pictures, split over the processes."""
    if not len(held_out):
        return []
    chosen = held_out[:VALIDATION_PICTURES]
    chosen = chosen[: len(chosen) // stepper.world * stepper.world] if stepper.world > 1 else chosen
    fixed = dataclasses.replace(draws, caption_dropout=0.0)
    rows = np.arange(stepper.rank, len(chosen), stepper.world)
    return [make_batch(dataset, chosen[rows], fixed, 2**31, rows)] if len(rows) else []


__all__ = [
    "METRICS",
    "SAMPLES",
    "Fitted",
    "Job",
    "OpenStepper",
    "Start",
    "common_prefix",
    "fit",
    "resumed_config",
]
