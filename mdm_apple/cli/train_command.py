"""`mdm train`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from mdm_apple import api
from mdm_apple.cli.model_options import (
    FILE,
    FOLDER,
    Gigabytes,
    LevelName,
    clips_per_file_option,
    config_option,
    preset_option,
)
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
    renamed,
)
from mdm_apple.cli.setting_options import (
    checkpointing_option,
    configured,
    kept_settings,
    resume_option,
    resumes,
    setting,
    settings_of_steps,
)
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import parameter_count
from mdm_apple.config.types import Background, TrainingPrecision
from mdm_apple.data.shards.plans import Order
from mdm_apple.data.shards.shard_pictures import BadPictures
from mdm_apple.errors import ConfigError
from mdm_apple.open_model import TrainingBackend
from mdm_apple.sampling.inner_model import AskedLevel, levels_of
from mdm_apple.text.captions import read_captions
from mdm_apple.training.memory_estimate import (
    describe,
    needs_recomputing,
    summary,
    usable_memory,
)
from mdm_apple.training.run_folder import killed_unsaved
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import refuse_other_model, resumed_config, resumed_data


@dataclass(frozen=True)
class TrainRequest:
    """The options of `mdm train`; a field of TrainConfig with the same name gets the value."""

    preset_name: str | None
    config_path: Path | None
    data: str | None
    out: Path
    steps: int | None
    backend: TrainingBackend | None
    batch_size: int
    accumulate: int
    lr: float
    embedding_lr_scale: float
    warmup_steps: int
    decay_share: float
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    ema_ramp: bool
    ema_warmup_steps: int
    no_ema: bool
    caption_dropout: float
    white_headroom: float
    precision: TrainingPrecision
    checkpointing: Literal["auto", "true", "false"]
    seed: int
    save_every: int
    log_every: int
    validate_every: int
    sample_every: int
    validation_share: float
    stop_at: AskedLevel | None
    init: str | None
    grow: str | None
    resume: Literal["always", "auto"] | None
    captions: Path | None
    features: Path | None
    text_encoder: Path | None
    background: Background
    skin_tones: bool
    skip_bad: bool
    clips_per_file: int | None
    pictures: str | None
    order: Order | None
    bad_pictures: BadPictures | None
    workers: int
    log: Literal["tensorboard"] | None
    dry_run: bool
    memory: float | None
    overwrite: bool
    given: frozenset[str]


@click.command(
    epilog="""\b
Examples:
  mdm train --preset emoji --data twemoji --steps 20000 --out runs/emoji
  mdm train --init flickr64 --data photos --features photos.features --steps 1000 --out tuned
"""
)
@preset_option
@config_option
@click.option(
    "--data", metavar="twemoji|scenes|motion|DIR|INDEX", help="Captioned pictures or clips."
)
@click.option("--out", type=FOLDER, required=True, help="Model folder to make.")
@click.option("--steps", type=click.IntRange(1), help="Total optimisation steps.")
@click.option(
    "--backend",
    type=click.Choice(get_args(TrainingBackend)),
    help="Default: mlx on Apple silicon, else torch; the other if only that is installed.",
)
@settings_of_steps
@setting(
    "--embedding-lr-scale", float, "Learning rate of the token embeddings, as a multiple of --lr."
)
@click.option("--no-ema", is_flag=True, help="Keep no averaged weights.")
@setting("--caption-dropout", float, "Share of captions left empty, for guidance.")
@setting("--white-headroom", float, "Train pure white as 1 + this, so that clipping cleans white.")
@checkpointing_option
@setting("--validate-every", click.IntRange(1), "Steps between validations.")
@setting("--sample-every", click.IntRange(0), "Steps between sample grids; 0: none.")
@setting("--validation-share", float, "Share of the pictures held out.")
@click.option(
    "--stop-at",
    type=LevelName(),
    help="Train only the levels up to this: a side, such as 16, or of clips such as 16x16.",
)
@click.option("--init", metavar="NAME", help="Start from this model: settings and weights.")
@click.option("--grow", metavar="NAME", help="Start with this smaller model as the inner levels.")
@resume_option
@click.option(
    "--captions", type=FILE, help="Train only on pictures with these captions, one per line."
)
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option(
    "--background",
    type=click.Choice(get_args(Background)),
    default="white",
    show_default=True,
    help="What to draw behind emoji.",
)
@click.option("--skin-tones", is_flag=True, help="Include emoji with skin tones.")
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out pictures that cannot be decoded. Decodes every picture once before the first "
    "step, which takes about as long as an epoch of reading; --resume only decodes changed files.",
)
@clips_per_file_option
@click.option(
    "--pictures",
    metavar="twemoji|scenes|DIR",
    help="Pictures beside clips: the last rows of each batch, for the levels of pictures.",
)
@click.option(
    "--order",
    type=click.Choice(get_args(Order)),
    help="Of an index of shards. lanes: a process reads few shards; uniform: mixes fully; folder: "
    "that of a folder of the same pictures. Default: lanes.",
)
@click.option(
    "--bad-pictures",
    type=click.Choice(get_args(BadPictures)),
    help="Of an index of shards: refuse a picture that cannot be decoded, or replace it by another "
    "of its shard. Default: refuse.",
)
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="Threads that prepare batches.",
)
@click.option(
    "--log", type=click.Choice(["tensorboard"]), help="Also write event files for TensorBoard."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the settings and the memory needed, then stop."
)
@click.option(
    "--memory",
    type=Gigabytes(),
    help="Memory of the machine to plan for with --dry-run; default: this one.",
)
@renamed("--warmup", "--warmup-steps")
@overwrite_option
@output_options
@filling(TrainRequest)
def command(request: TrainRequest, output: Output) -> None:
    """Train a model on captioned pictures.

    Ctrl-C, SIGTERM and SIGUSR1 save and stop with exit code 75; --resume continues exactly there.
    --resume auto starts a run or continues it, so that one command may be repeated until it is
    done. With torchrun, or mlx.launch for MLX, the processes share each batch.
    """
    goes_on = resumes(request.resume, request.out)
    config, train, data = _resumed(request) if goes_on else _fresh(request)
    if request.dry_run:
        output.result(*_dry_run(config, train, request.memory))
        return
    if not goes_on and not killed_unsaved(request.out):
        refuse_existing(request.out, request.overwrite)
    captions = None if request.captions is None else read_captions(request.captions)
    run = api.train(
        data,
        request.out,
        settings=train,
        preset=request.preset_name if request.init is None and not goes_on else None,
        config=config if goes_on else request.config_path,
        init=None if goes_on else request.init,
        grow=None if goes_on else request.grow,
        stop_at=None if goes_on else request.stop_at,
        resume=goes_on,
        backend=request.backend,
        captions=captions,
        features=request.features,
        text_encoder=request.text_encoder,
        background=request.background if "background" in request.given else None,
        skin_tones=request.skin_tones or None,
        skip_bad=request.skip_bad,
        clips_per_file=request.clips_per_file,
        pictures=request.pictures,
        order=request.order,
        bad_pictures=request.bad_pictures,
        workers=request.workers,
        tensorboard=request.log == "tensorboard",
        overwrite=request.overwrite,
        say=output.say,
        quiet=output.quiet,
    )
    if run.learner.rank == 0:  # one result, however many processes
        output.result(
            {"out": str(request.out), "steps": train.steps},
            f"{request.out}: finished at step {train.steps}.",
        )


def _fresh(request: TrainRequest) -> tuple[ModelConfig, TrainConfig, str]:
    """What to train, how, and on which data; "auto" is decided by the memory of the machine."""
    for option, value in (("--data", request.data), ("--steps", request.steps)):
        if value is None:
            raise click.UsageError(f"Missing option '{option}'.")
    config, train = _model_config(request), _train_config(request, request.steps or 1)
    if request.checkpointing == "auto":
        recompute = needs_recomputing(config, train, usable_memory(request.memory))
        train = dataclasses.replace(train, checkpointing=recompute)
    return config, train, str(request.data)


def _resumed(request: TrainRequest) -> tuple[ModelConfig, TrainConfig, str]:
    """What an interrupted run trains; refuses to resume it as a different model."""
    if request.resume == "always" and (request.init is not None or request.grow is not None):
        raise ConfigError("resume: continues the run in --out, so leave out --init and --grow.")
    given = request.given | ({"ema_decay"} if request.no_ema else set[str]())
    given -= {"checkpointing"} if request.checkpointing == "auto" else set[str]()
    asked = _train_config(request, request.steps or 1)
    saved, train = resumed_config(request.out, asked, kept_settings(TrainConfig, given))
    if request.preset_name is not None or request.config_path is not None:
        refuse_other_model(saved, _model_config(request), request.out)
    return saved, train, request.data or resumed_data(request.out)


def _model_config(request: TrainRequest) -> ModelConfig:
    return api.model_to_train(
        request.preset_name, request.config_path, request.init, request.stop_at
    )


def _train_config(request: TrainRequest, steps: int) -> TrainConfig:
    recompute = request.checkpointing == "true"
    ema_decay = None if request.no_ema else request.ema_decay
    return configured(
        TrainConfig, request, steps=steps, checkpointing=recompute, ema_decay=ema_decay
    )


def _dry_run(
    config: ModelConfig, train: TrainConfig, gigabytes: float | None
) -> tuple[dict[str, Any], str]:
    """Settings and memory, as values and as text; nothing is loaded."""
    available = usable_memory(gigabytes)
    values = {
        "model": dataclasses.asdict(config),
        "train": dataclasses.asdict(train),
        "memory": describe(config, train, available),
    }
    levels, what = " > ".join(levels_of(config)), "pictures" if config.frames == 1 else "clips"
    millions = parameter_count(config.model) / 1e6
    line = (
        f"{millions:.2f} M parameters, {levels} px; {train.steps} steps of {train.batch_size} "
        f"{what}, lr {train.lr:g}, {train.precision}."
    )
    return values, f"{line}\n{summary(config, train, available)}"
