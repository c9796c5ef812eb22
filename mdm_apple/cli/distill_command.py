"""`mdm distill`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from mdm_apple.cli.model_options import FILE, FOLDER, default_backend, require_backend
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.storage.model_folder import load_model_config
from mdm_apple.training.boot import BootConfig, student_config
from mdm_apple.training.settings import TrainConfig

DEFAULTS = {
    f.name: f.default for kind in (TrainConfig, BootConfig) for f in dataclasses.fields(kind)
}


def _setting(flag: str, kind: Any, text: str) -> Any:
    """An option whose name and default are those of the configuration."""
    field = flag.removeprefix("--").replace("-", "_")
    return click.option(
        flag, field, type=kind, default=DEFAULTS[field], show_default=True, help=text
    )


@click.command(
    epilog="""\b
Examples:
  mdm distill --teacher runs/emoji --out runs/emoji-student --steps 20000 --guidance 1 6
  mdm distill --teacher runs/emoji --out runs/emoji-four --steps 20000 --flow-map 4 --resume
"""
)
@click.option("--teacher", type=FOLDER, required=True, help="Model folder to learn from.")
@click.option("--out", type=FOLDER, required=True, help="Model folder to make.")
@click.option("--steps", type=click.IntRange(1), required=True, help="Optimisation steps in all.")
@click.option(
    "--backend",
    type=click.Choice(["torch", "mlx"]),
    help="Default: mlx on Apple silicon, else torch; or the one that is installed.",
)
@click.option(
    "--captions", type=FILE, help="Prompts, one a line. Default: captions.txt beside the teacher."
)
@click.option(
    "--guidance",
    type=(float, float),
    default=DEFAULTS["guidance"],
    metavar="LO HI",
    show_default=True,
    help="Weights that the student learns to take as an input.",
)
@_setting(
    "--flow-map", click.IntRange(1, 64), "Starts to jump from: 1 for one step, K for up to K."
)
@_setting("--stride", float, "The teacher's step, as a share of the table.")
@_setting("--boundary-share", float, "Share of rows that learn the answer at their start.")
@_setting("--later-share", float, "Share of rows that start later than at noise (flow maps).")
@_setting("--consistency-weight", float, "Of the difference between pooled levels.")
@_setting("--batch-size", click.IntRange(1), "Rows per step, over all processes.")
@_setting("--accumulate", click.IntRange(1), "Parts that a batch is split into.")
@_setting("--lr", click.FloatRange(0, 1, min_open=True), "Learning rate.")
@_setting("--warmup-steps", click.IntRange(0), "Steps of linear warm-up.")
@_setting("--decay-share", float, "Share of the run in which the rate falls to zero.")
@_setting("--clip-norm", float, "Largest gradient norm.")
@_setting("--ema-decay", float, "Decay of the averaged weights.")
@_setting("--precision", click.Choice(["fp32", "bf16"]), "Of matrix products.")
@_setting("--checkpointing", bool, "Recompute activations to save memory.")
@_setting("--seed", click.IntRange(0, 2**32 - 1), "Order, noise and fresh weights.")
@_setting("--save-every", click.IntRange(1), "Steps between checkpoints.")
@_setting("--log-every", click.IntRange(1), "Steps between lines of metrics.jsonl.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out.")
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop.")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Teach a student to make a model's pictures in one to a few steps.

    From noise and captions alone (BOOT): no picture is read. Ctrl-C saves and stops; --resume with
    the same settings goes on exactly there.
    """
    output = Output(options["as_json"], options["quiet"])
    train, boot = _configured(TrainConfig, options), _configured(BootConfig, options)
    out: Path = options["out"]
    config = student_config(load_model_config(options["teacher"]), boot)
    if options["dry_run"]:
        settings = {"model": config, "train": train, "boot": boot}
        output.result(
            {name: dataclasses.asdict(part) for name, part in settings.items()},
            f"a student of {', '.join(map(str, config.sides))} px that jumps from table indices "
            f"{', '.join(map(str, boot.starts(config.diffusion.schedule.num_steps)))}.",
        )
        return
    if not options["resume"]:
        refuse_existing(out, options["overwrite"])
    backend = options["backend"] or default_backend()
    require_backend(backend)
    from mdm_apple.training.distill import DistillJob, distill

    if backend == "mlx":
        from mdm_apple.mlx.boot import open_boot_learner
    else:
        from mdm_apple.torch.boot import open_boot_learner

    names = [f.name for f in dataclasses.fields(DistillJob) if f.name in options]
    shared = {name: options[name] for name in names}
    distill(DistillJob(train=train, boot=boot, **shared), open_boot_learner)
    output.result({"out": str(out), "steps": train.steps}, f"{out}: {train.steps} steps done.")


def _configured(kind: Any, options: dict[str, Any]) -> Any:
    return kind(**{f.name: options[f.name] for f in dataclasses.fields(kind) if f.name in options})
