"""Options that take their name, type and default from a field of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click

from mdm_apple.config.types import TrainingPrecision
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.storage.atomic_folder import has_file
from mdm_apple.training.boot import BootConfig
from mdm_apple.training.settings import TrainConfig

Command = TypeVar("Command", bound=Callable[..., Any])
Config = TypeVar("Config", TrainConfig, BootConfig)

DEFAULTS = {
    f.name: f.default for kind in (TrainConfig, BootConfig) for f in dataclasses.fields(kind)
}


def setting(flag: str, kind: Any, text: str) -> Callable[[Command], Command]:
    """An option for the field of the same name: `--batch-size` for `batch_size`."""
    field = flag.partition("/")[0].removeprefix("--").replace("-", "_")
    return click.option(
        flag, field, type=kind, default=DEFAULTS[field], show_default=True, help=text
    )


def configured(kind: type[Config], request: Any, **changes: Any) -> Config:
    """A configuration filled from the fields of the request that have the same names."""
    names = {f.name for f in dataclasses.fields(kind)} & {
        f.name for f in dataclasses.fields(request)
    }
    return kind(**{name: getattr(request, name) for name in names} | changes)


def settings_of_steps(command: Command) -> Command:
    """The settings that training and distilling share."""
    for option in reversed(SHARED):
        command = option(command)
    return command


SHARED = (
    setting("--batch-size", click.IntRange(1), "Rows per step, over all processes."),
    setting("--accumulate", click.IntRange(1), "Number of parts in which a batch is processed."),
    setting("--lr", click.FloatRange(0, 1, min_open=True), "Learning rate."),
    setting("--warmup-steps", click.IntRange(0), "Steps of linear warm-up."),
    setting("--decay-share", float, "Share of the run in which the rate falls to zero."),
    setting("--beta1", float, "First decay of AdamW."),
    setting("--beta2", float, "Second decay of AdamW."),
    setting("--weight-decay", float, "Weight decay of AdamW."),
    setting("--clip-norm", float, "Largest gradient norm."),
    setting("--ema-decay", float, "Decay of the averaged weights."),
    setting(
        "--ema-ramp/--no-ema-ramp",
        bool,
        "Start with a smaller decay, so that short runs show in the average.",
    ),
    setting("--ema-warmup-steps", click.IntRange(0), "Steps in which the average just follows."),
    setting(
        "--precision", click.Choice(get_args(TrainingPrecision)), "Number type for matrix products."
    ),
    setting(
        "--seed",
        click.IntRange(0, MAX_SEED),
        "Seed of the order, the noise and the initial weights.",
    ),
    setting("--save-every", click.IntRange(1), "Steps between checkpoints."),
    setting("--log-every", click.IntRange(1), "Steps between lines of metrics.jsonl."),
)

resume_option = click.option(
    "--resume",
    is_flag=False,
    flag_value="always",
    type=click.Choice(["always", "auto"]),
    metavar="[auto]",
    help="Continue the interrupted run in --out; its settings are the default. auto: or start one.",
)


def resumes(resume: Literal["always", "auto"] | None, out: Path) -> bool:
    """Whether a command continues a run; `auto` does if there is one."""
    return resume == "always" or (resume == "auto" and has_file(out, "training.json"))


def kept_settings(kind: type[Config], given: frozenset[str]) -> list[str]:
    """The settings that the caller left out, so that those of the run apply."""
    return [field.name for field in dataclasses.fields(kind) if field.name not in given]


checkpointing_option = click.option(
    "--checkpointing",
    type=click.Choice(["auto", "true", "false"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Recompute activations to save memory; auto: if this machine would run out.",
)
