"""`mdm distill`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click

from mdm_apple import api
from mdm_apple.bundled_models import find_folder
from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.cli.setting_options import (
    DEFAULTS,
    checkpointing_option,
    configured,
    kept_settings,
    resume_option,
    resumes,
    setting,
    settings_of_steps,
)
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import TrainingPrecision
from mdm_apple.open_model import TrainingBackend
from mdm_apple.sampling.inner_model import levels_of
from mdm_apple.storage.model_folder import load_model_config
from mdm_apple.training.boot import BootConfig, student_config
from mdm_apple.training.distill import resumed_boot
from mdm_apple.training.memory_estimate import needs_recomputing, usable_memory
from mdm_apple.training.run_folder import killed_unsaved
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import resumed_config


@dataclass(frozen=True)
class DistillRequest:
    """The options of `mdm distill`; a field of TrainConfig or BootConfig gets the value."""

    teacher: str
    out: Path
    steps: int | None
    backend: TrainingBackend | None
    captions: Path | None
    guidance: tuple[float, float]
    flow_map: int
    stride: float
    boundary_share: float
    later_share: float
    consistency_weight: float
    batch_size: int
    accumulate: int
    lr: float
    warmup_steps: int
    decay_share: float
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    ema_ramp: bool
    ema_warmup_steps: int
    precision: TrainingPrecision
    checkpointing: Literal["auto", "true", "false"]
    seed: int
    save_every: int
    log_every: int
    resume: Literal["always", "auto"] | None
    features: Path | None
    text_encoder: Path | None
    dry_run: bool
    overwrite: bool
    given: frozenset[str]


@click.command(
    epilog="""\b
Examples:
  mdm distill --teacher runs/emoji --out runs/emoji-student --steps 20000 --guidance 1 6
  mdm distill --teacher runs/emoji --out runs/emoji-four --steps 20000 --flow-map 4 --resume
"""
)
@click.option("--teacher", metavar="NAME", required=True, help="Model to learn from.")
@click.option("--out", type=FOLDER, required=True, help="Model folder to make.")
@click.option("--steps", type=click.IntRange(1), help="Total optimisation steps.")
@click.option(
    "--backend",
    type=click.Choice(get_args(TrainingBackend)),
    help="Default: mlx on Apple silicon, else torch; the other if only that is installed.",
)
@click.option(
    "--captions",
    type=FILE,
    help="File of prompts, one per line. Default: captions.txt beside the teacher.",
)
@click.option(
    "--guidance",
    type=(float, float),
    default=DEFAULTS["guidance"],
    metavar="LO HI",
    show_default=True,
    help="Range of guidance that the student learns to take as an input.",
)
@setting(
    "--flow-map",
    click.IntRange(1, 64),
    "Number of starts to jump from: 1 for one step, K for up to K steps.",
)
@setting("--stride", float, "The teacher's step, as a share of the table.")
@setting("--boundary-share", float, "Share of rows that learn the answer at their start.")
@setting("--later-share", float, "Share of rows that start after pure noise (flow maps).")
@setting("--consistency-weight", float, "Weight of the difference between pooled levels.")
@settings_of_steps
@checkpointing_option
@resume_option
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings, then stop.")
@overwrite_option
@output_options
@filling(DistillRequest)
def command(request: DistillRequest, output: Output) -> None:
    """Teach a student to make a model's pictures in one or a few steps.

    It learns from noise and captions alone (BOOT): no picture is read. Ctrl-C, SIGTERM and SIGUSR1
    save and stop with exit code 75; --resume continues exactly there. --resume auto starts a run or
    continues it, so that one command may be repeated until it is done.
    """
    goes_on = resumes(request.resume, request.out)
    if not goes_on and request.steps is None:
        raise click.UsageError("Missing option '--steps'.")
    boot = configured(BootConfig, request)
    if goes_on:
        boot = resumed_boot(request.out, boot, kept_settings(BootConfig, request.given))
    teacher = find_folder(request.teacher).path
    config = student_config(load_model_config(teacher), boot)
    train = _train_config(request, config, goes_on)
    if request.dry_run:
        settings = {"model": config, "train": train, "boot": boot}
        output.result(
            {name: dataclasses.asdict(part) for name, part in settings.items()},
            f"a student of {', '.join(levels_of(config))} px that jumps from table indices "
            f"{', '.join(map(str, boot.starts(config.diffusion.schedule.num_steps)))}.",
        )
        return
    if not goes_on and not killed_unsaved(request.out):
        refuse_existing(request.out, request.overwrite)
    api.distill(
        request.teacher,
        request.out,
        settings=train,
        boot=boot,
        backend=request.backend,
        captions=request.captions,
        features=request.features,
        text_encoder=request.text_encoder,
        resume=goes_on,
        overwrite=request.overwrite,
        say=output.say,
        quiet=output.quiet,
    )
    output.result(
        {"out": str(request.out), "steps": train.steps},
        f"{request.out}: finished at step {train.steps}.",
    )


def _train_config(request: DistillRequest, config: ModelConfig, goes_on: bool) -> TrainConfig:
    """The settings; "auto" recomputes activations if the student alone would not fit."""
    recompute = request.checkpointing == "true"
    train = configured(TrainConfig, request, steps=request.steps or 1, checkpointing=recompute)
    if goes_on:
        given = request.given - ({"checkpointing"} if request.checkpointing == "auto" else set())
        return resumed_config(request.out, train, kept_settings(TrainConfig, given))[1]
    if request.checkpointing != "auto":
        return train
    recompute = needs_recomputing(config, train, usable_memory())
    return dataclasses.replace(train, checkpointing=recompute)
