"""Where a training run begins: fresh, from another folder, around a smaller model, or resumed.

Input: a `Job`. Output: the configuration as it will be trained, its tokenizer, and the weights and
state to start with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.strict_json import from_dict
from mdm_apple.config.types import Background
from mdm_apple.data.dataset import Pictures
from mdm_apple.data.from_object import PictureSource
from mdm_apple.data.shards.plans import Order
from mdm_apple.data.shards.shard_pictures import BadPictures
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.storage import model_folder
from mdm_apple.storage.atomic_folder import finish_save, has_file, verify_files
from mdm_apple.text.tokenizer import Tokenizer, train_tokenizer
from mdm_apple.training.chosen_data import ChosenData
from mdm_apple.training.dropout import BY_ROW, DROPOUT
from mdm_apple.training.learner import Snapshot
from mdm_apple.training.run_folder import refuse_changes, refuse_running, steps_done
from mdm_apple.training.settings import TrainConfig

Weights = Mapping[str, NDArray[np.float32]]

ANEW = "start anew with --init"  # advice when a run cannot be resumed


@dataclass(frozen=True)
class Job:
    """What to train, on which data, and the folder for the result."""

    config: ModelConfig
    train: TrainConfig
    data: str | PictureSource
    out: Path
    resume: bool = False
    init: Path | None = None
    grow: Path | None = None
    features: Path | None = None
    text_encoder: Path | None = None
    captions: tuple[str, ...] | None = None  # only the pictures with these captions
    background: Background | None = None  # None: white, or as the run was started
    skin_tones: bool | None = None
    pictures: str | None = None  # beside clips, for the levels of pictures
    clips_per_file: int | None = None  # None: as many as usual, or as the run was started
    order: Order | None = None  # of an index of shards; None: lanes, or as the run was started
    bad_pictures: BadPictures | None = None  # of an index; None: refuse, or as it was started
    skip_bad: bool = False  # leave out pictures that cannot be decoded
    workers: int = 1
    tensorboard: bool = False  # event files beside metrics.jsonl
    quiet: bool = False


@dataclass(frozen=True)
class Start:
    """Where a run begins: weights by name (None: fresh), and the state of an interrupted one."""

    step: int = 0
    weights: Weights | None = None  # of the network; for `grow` only of the inner levels
    encoder: Weights | None = None
    snapshot: Snapshot | None = None
    dropout_by_row: bool = True  # False: a run that was begun before rows had masks of their own


def check_job(job: Job) -> None:
    """Refuse contradictory starts, a changed run, and text features that the model cannot take."""
    if job.resume and (job.init or job.grow):
        raise ConfigError("resume: continues the run in --out, so leave out --init and --grow.")
    if job.init and job.grow:
        raise ConfigError("init, grow: choose one of them.")
    refuse_running(job.out)
    if job.resume:
        saved, _ = resumed_config(job.out, job.train)
        refuse_other_model(saved, job.config, job.out)
    _check_text(as_started(job))


def as_started(job: Job) -> Job:
    """A resumed job with the options that its run was started with. Raises MdmError."""
    if not job.resume:
        return job
    chosen = chosen_data(job).resumed(model_folder.load_training_meta(job.out), job.out)
    given = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    return dataclasses.replace(job, **given)


def chosen_data(job: Job) -> ChosenData:
    """The options that each save notes."""
    return ChosenData(
        job.captions,
        job.background,
        job.skin_tones,
        job.features,
        job.text_encoder,
        job.clips_per_file,
        job.pictures,
        job.order,
        job.bad_pictures,
    )


def starting_model(job: Job, dataset: Pictures) -> tuple[ModelConfig, Tokenizer | None]:
    """The configuration as it will be trained, and the tokenizer of a trainable encoder."""
    tokenizer = _tokenizer(job, dataset)
    return _with_tokenizer(_as_trained(job), tokenizer), tokenizer


def starting_point(job: Job, config: ModelConfig) -> Start:
    """The initial weights, and the state of an interrupted run."""
    if job.resume:
        return _resumed(job)
    source = job.init or job.grow
    if source is None:
        return Start()
    weights = model_folder.load_weights(source, model_folder.averaged(source, "model"))
    if job.grow:
        weights = _inner_weights(config, model_folder.load_model_config(source), weights, source)
    return Start(weights=weights, encoder=model_folder.averaged_encoder(source))


def resumed_config(
    out: Path, train_config: TrainConfig, as_before: Collection[str] = ()
) -> tuple[ModelConfig, TrainConfig]:
    """Configuration and training settings of an interrupted run; some settings may change.

    as_before: settings that the caller left out, so the saved ones apply.
    """
    finish_save(out)
    saved = model_folder.load_training_meta(out)
    before = from_dict(TrainConfig, saved.get("train"), f"{out}: training.json")
    saved_ones = {name: getattr(before, name) for name in as_before}
    train_config = dataclasses.replace(train_config, **saved_ones)
    refuse_changes(before, train_config, out, ANEW)
    return model_folder.load_model_config(out), train_config


def resumed_data(out: Path) -> str:
    """The data that an interrupted run was started on."""
    data = model_folder.load_training_meta(out).get("data")
    if not isinstance(data, str):
        raise MdmError(f"{out}: its run does not say on which data it was started; name the data.")
    return data


def refuse_other_model(saved: ModelConfig, asked: ModelConfig, out: Path) -> None:
    """Refuse to resume a run as a different model."""
    if (asked.model, asked.side, asked.diffusion) != (saved.model, saved.side, saved.diffusion):
        raise MdmError(
            f"resume: the run in {out} trains a different model; leave out preset, config and "
            "stop-at to continue it."
        )


def common_prefix(weights: Mapping[str, object]) -> str:
    """The longest run of 'inner_unet.' that every name starts with."""
    prefix = ""
    while all(name.startswith(prefix + "inner_unet.") for name in weights):
        prefix += "inner_unet."
    return prefix


def _resumed(job: Job) -> Start:
    out = job.out
    verify_files(out)
    state = model_folder.load_training(out)
    step = steps_done(state.meta, job.train.steps, out, ANEW)
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
    by_row = state.meta.get(DROPOUT) == BY_ROW
    return Start(step, snapshot.weights, snapshot.encoder, snapshot, by_row)


def _inner_weights(
    config: ModelConfig, smaller: ModelConfig, weights: Weights, source: Path
) -> Weights:
    """Weights of a trained smaller model, renamed to inner levels."""
    for depth, level in enumerate(config.model.levels):
        if depth and level == smaller.model:
            prefix = "inner_unet." * depth
            return {prefix + name: value for name, value in weights.items()}
    raise ConfigError(
        f"grow: {source} holds a {smaller.side} px model that is not an inner level of this one; "
        "its settings must equal those of an inner level."
    )


def _check_text(job: Job) -> None:
    """Refuse outside features if the model trains its own encoder or takes no text."""
    text = job.config.text
    for name, given in (("features", job.features), ("text-encoder", job.text_encoder)):
        if given is None:
            continue
        if text is not None and not text.trainable:
            if not given.exists():
                raise MdmError(f"{name}: {given}: no such file or folder.")
        else:
            why = "takes no text" if text is None else "trains its own text encoder"
            raise MdmError(f"{name}: this model {why}; leave out --{name}.")


def _tokenizer(job: Job, dataset: Pictures) -> Tokenizer | None:
    """The tokenizer of a trainable encoder."""
    text = _as_trained(job).text
    if text is None or not text.trainable:
        return None
    source = job.out if job.resume else job.init or job.grow
    return new_or_saved_tokenizer(text, source, dataset.captions())


def new_or_saved_tokenizer(
    text: TextConfig, source: Path | None, captions: Sequence[str]
) -> Tokenizer | None:
    """The tokenizer of the model that training starts from, or else one made from the captions.

    None for an encoder of which only the features are known.
    """
    if text.encoder is None:
        return None
    if source is not None:
        _check_encoder(source)
        return Tokenizer(
            model_folder.load_tokenizer(source),
            lowercase=text.lowercase,
            null_prompt=text.null_prompt,
        )
    return train_tokenizer(
        captions,
        text.encoder.vocab_size,
        lowercase=text.lowercase,
        null_prompt=text.null_prompt,
    )


def _as_trained(job: Job) -> ModelConfig:
    """The configuration with this run's additions: mixed batches, white, a smaller model's text."""
    config = job.config
    if job.grow is not None:
        text = model_folder.load_model_config(job.grow).text
        if text and config.text and text.encoder == config.text.encoder:
            config = dataclasses.replace(config, text=text)
    mixed = config.mixed_training or config.diffusion.mixed_ratio is not None
    return dataclasses.replace(
        config, mixed_training=mixed, white_headroom=job.train.white_headroom
    )


def _check_encoder(source: Path) -> None:
    """Refuse a model whose trained encoder is missing, as after `mdm import`."""
    model_folder.load_model_config(source)  # refuses anything that is not a model folder
    for name in ("tokenizer.model", "text_encoder.safetensors"):
        if not has_file(source, name):
            raise MdmError(
                f"{source}: holds no {name}, although this model trains its own text encoder; copy "
                "tokenizer.model and text_encoder.safetensors there from the run that made "
                "the weights, or start anew with --preset or --config."
            )


def _with_tokenizer(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    if tokenizer is None or config.text is None:
        return config
    text = dataclasses.replace(config.text, tokenizer_sha256=tokenizer.sha256)
    return dataclasses.replace(config, text=text)
