"""`mdm train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from mdm_apple.cli.model_options import (
    FILE,
    FOLDER,
    Gigabytes,
    backend_option,
    chosen_config,
    config_option,
    default_backend,
    preset_option,
    require_backend,
)
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.config.model import ModelConfig
from mdm_apple.errors import MdmError
from mdm_apple.sampling.inner_model import inner_model
from mdm_apple.storage.model_folder import load_model_config
from mdm_apple.text.captions import read_captions
from mdm_apple.training.settings import TrainConfig

DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}


def _setting(flag: str, field: str, kind: Any, text: str) -> Any:
    """An option whose default is that of the training configuration."""
    return click.option(
        flag, field, type=kind, default=DEFAULTS[field], show_default=True, help=text
    )


@click.command(
    epilog="""\b
Examples:
  mdm train --preset emoji --data twemoji --steps 20000 --out runs/emoji
  mdm train --init flickr64 --data photos --features photos.features --steps 1000 --out tuned
"""
)
@preset_option
@config_option
@click.option("--data", required=True, metavar="twemoji|DIR", help="Captioned pictures.")
@click.option("--out", type=FOLDER, required=True, help="Model folder to make.")
@click.option("--steps", type=click.IntRange(1), required=True, help="Optimisation steps in all.")
@backend_option
@_setting("--batch-size", "batch_size", click.IntRange(1), "Pictures per step, over all processes.")
@_setting("--accumulate", "accumulate", click.IntRange(1), "Parts that a batch is split into.")
@_setting("--lr", "lr", click.FloatRange(0, 1, min_open=True), "Learning rate.")
@_setting(
    "--embedding-lr-scale", "embedding_lr_scale", float, "Token embeddings learn so much faster."
)
@_setting("--warmup", "warmup_steps", click.IntRange(0), "Steps of linear warm-up.")
@_setting(
    "--decay-share", "decay_share", float, "Share of the run in which the rate falls to zero."
)
@_setting("--beta2", "beta2", float, "AdamW's second decay.")
@_setting("--weight-decay", "weight_decay", float, "AdamW's weight decay.")
@_setting("--clip-norm", "clip_norm", float, "Largest gradient norm.")
@_setting("--ema-decay", "ema_decay", float, "Decay of the averaged weights.")
@click.option("--no-ema", is_flag=True, help="Keep no averaged weights.")
@_setting("--caption-dropout", "caption_dropout", float, "Share of empty captions, for guidance.")
@_setting(
    "--white-headroom", "white_headroom", float, "Train pure white as 1 + this, for clean white."
)
@_setting("--precision", "precision", click.Choice(["fp32", "bf16"]), "Of matrix products.")
@click.option(
    "--checkpointing",
    type=click.Choice(["auto", "true", "false"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Recompute activations to save memory; auto: where this machine's would not do.",
)
@_setting("--seed", "seed", click.IntRange(0, 2**32 - 1), "Order, noise and initial weights.")
@_setting("--save-every", "save_every", click.IntRange(1), "Steps between checkpoints.")
@_setting("--log-every", "log_every", click.IntRange(1), "Steps between lines of metrics.jsonl.")
@_setting("--validate-every", "validate_every", click.IntRange(1), "Steps between validations.")
@_setting(
    "--sample-every", "sample_every", click.IntRange(0), "Steps between sample grids; 0: none."
)
@_setting("--validation-share", "validation_share", float, "Share of the pictures held out.")
@click.option(
    "--stop-at", type=click.IntRange(1), metavar="SIZE", help="Only the levels up to this side."
)
@click.option("--init", type=FOLDER, help="Start from this model folder: settings and weights.")
@click.option("--grow", type=FOLDER, help="Start with this smaller model as the inner levels.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out.")
@click.option("--captions", "captions_file", type=FILE, help="Train on these only, one a line.")
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option("--background", type=click.Choice(["white", "color"]), default="white")
@click.option("--skin-tones", is_flag=True, help="Twemoji with all skin tones.")
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print settings and memory needed, and stop.")
@click.option(
    "--memory",
    type=Gigabytes(),
    help="Of the machine that --dry-run is asked about; default: this one.",
)
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Train a model on captioned pictures.

    Ctrl-C saves and stops; --resume goes on exactly there. With torchrun, or mlx.launch for MLX,
    the batch is shared between the processes.
    """
    output = Output(options["as_json"], options["quiet"])
    train = _train_config(options)
    out: Path = options["out"]
    if options["resume"]:
        from mdm_apple.training.start import resumed_config

        by_itself = options["checkpointing"] == "auto"
        config, train = resumed_config(out, train, ["checkpointing"] if by_itself else ())
        _check_same_model(config, options)
    else:
        config = _model_config(options)
        train = _with_checkpointing(config, train, options)
    if options["dry_run"]:
        output.result(*_dry_run(config, train, options["memory"]))
        return
    if not options["resume"]:
        refuse_existing(out, options["overwrite"])
    backend = options["backend"] or default_backend()
    require_backend(backend)
    from mdm_apple.training.run import run_job
    from mdm_apple.training.start import Job

    if backend == "mlx":
        from mdm_apple.mlx.open_run import open_learner
    else:
        from mdm_apple.torch.open_run import open_learner

    listed: Path | None = options["captions_file"]
    options["captions"] = None if listed is None else read_captions(listed)
    shared = {f.name: options[f.name] for f in dataclasses.fields(Job) if f.name in options}
    run = run_job(Job(config=config, train=train, **shared), open_learner, output.say)
    if run.learner.rank == 0:  # one result, however many processes
        output.result({"out": str(out), "steps": train.steps}, f"{out}: {train.steps} steps done.")


def _train_config(options: dict[str, Any]) -> TrainConfig:
    values = {f.name: options[f.name] for f in dataclasses.fields(TrainConfig) if f.name in options}
    values["checkpointing"] = options["checkpointing"] == "true"
    if options["no_ema"]:
        values["ema_decay"] = None
    return TrainConfig(**values)


def _check_same_model(saved: ModelConfig, options: dict[str, Any]) -> None:
    """Refuse to resume a run as another model than it was started with."""
    if options["preset_name"] is None and options["config_path"] is None:
        return
    asked = _model_config(options)
    if (asked.model, asked.side, asked.diffusion) != (saved.model, saved.side, saved.diffusion):
        raise MdmError(
            f"resume: the run in {options['out']} trains another model; leave out --preset, "
            "--config and --stop-at to go on with it."
        )


def _with_checkpointing(
    config: ModelConfig, train: TrainConfig, options: dict[str, Any]
) -> TrainConfig:
    """The settings with "auto" decided by what the batch needs and the machine has."""
    if options["checkpointing"] != "auto":
        return train
    from mdm_apple.training.memory_estimate import needs_recomputing

    recompute = needs_recomputing(config, train, _usable(options["memory"]))
    return dataclasses.replace(train, checkpointing=recompute)


def _usable(gigabytes: float | None) -> int | None:
    """Bytes that a run may use of this machine's memory, or of so many gigabytes."""
    from mdm_apple.training.memory_estimate import USABLE_SHARE, machine_memory

    machine = machine_memory() if gigabytes is None else int(gigabytes * 1e9)
    return None if machine is None else int(machine * USABLE_SHARE)


def _model_config(options: dict[str, Any]) -> ModelConfig:
    if options["init"] is not None:
        if options["preset_name"] or options["config_path"] or options["stop_at"]:
            raise MdmError(
                "init: brings its own configuration, so leave out --preset, --config and --stop-at."
            )
        return load_model_config(options["init"])
    config = chosen_config(options["preset_name"], options["config_path"])
    return config if options["stop_at"] is None else inner_model(config, options["stop_at"])


def _dry_run(
    config: ModelConfig, train: TrainConfig, gigabytes: float | None
) -> tuple[dict[str, Any], str]:
    """Settings and memory, as values and as text; nothing is loaded."""
    from mdm_apple.config.shapes import parameter_count
    from mdm_apple.training.memory_estimate import describe, summary

    available = _usable(gigabytes)
    values = {
        "model": dataclasses.asdict(config),
        "train": dataclasses.asdict(train),
        "memory": describe(config, train, available),
    }
    sides = " > ".join(map(str, config.sides))
    millions = parameter_count(config.model) / 1e6
    line = (
        f"{millions:.2f} M parameters, {sides} px; {train.steps} steps of {train.batch_size} "
        f"pictures, lr {train.lr:g}, {train.precision}."
    )
    return values, f"{line}\n{summary(config, train, available)}"
