"""`mdm evaluate`."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from mdm_apple import __version__
from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.open_model import BACKENDS, model_option, open_model
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.cli.sample_command import SAMPLERS
from mdm_apple.data.open import open_dataset, with_captions
from mdm_apple.errors import MdmError, require
from mdm_apple.evaluation.evaluate import (
    Evaluation,
    EvaluationPlan,
    Judge,
    Pair,
    Teacher,
    evaluate,
    mean_scores,
    worst_scores,
)
from mdm_apple.sampling.pictures import Pixels, enlarge, save_png, tile, to_pixels
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.files import atomic_file
from mdm_apple.text.captions import read_captions

GRID_SIDE = 64  # smaller pictures are enlarged to it
GRID_COLUMNS = 8


@click.command(
    epilog="""\b
Examples:
  mdm evaluate --model runs/emoji --data twemoji --guidance 4 --out scores.json --grid pairs.png
  mdm evaluate --model runs/emoji --data twemoji --stop-at 16 --eval-seed 1 --eval-seed 2 --json
"""
)
@model_option
@click.option("--data", required=True, metavar="twemoji|DIR", help="Captioned real pictures.")
@click.option(
    "--count", type=click.IntRange(4), default=512, show_default=True, help="Captions per seed."
)
@click.option(
    "--eval-seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    help="Draws captions and noise; repeat for mean and worst. Default 0.",
)
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True)
@click.option("--spacing", type=click.Choice(["even", "log_snr"]), default="even", help="Of steps.")
@click.option("--guidance", type=float, default=3.0, show_default=True, help="1: none.")
@click.option("--threshold", type=click.Choice(["none", "clip", "dynamic", "dynamic_if"]))
@click.option("--stop-at", type=click.IntRange(1), metavar="SIZE", help="Run up to this side only.")
@click.option("--captions", "captions_file", type=FILE, help="Only pictures called so, one a line.")
@click.option("--background", type=click.Choice(["white", "color"]), default="white")
@click.option("--skin-tones", is_flag=True, help="Twemoji with all skin tones.")
@click.option("--teacher", type=FOLDER, help="Also the distance to its pictures of the same noise.")
@click.option("--teacher-steps", type=click.IntRange(1), default=50, show_default=True)
@click.option("--inception", is_flag=True, help="Also FID; its network is downloaded once.")
@click.option("--clip", is_flag=True, help="Also CLIP score; its network is downloaded once.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=32, show_default=True)
@click.option("--backend", type=click.Choice(BACKENDS), default=None, help="Default: by machine.")
@click.option("--dtype", "precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option("--out", type=FILE, metavar="F.json", help="Scores as a file.")
@click.option("--grid", type=FILE, metavar="F.png", help="64 pairs: real, made.")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Score a model: are its pictures those that the captions name, clean, and as varied as real.

    Pictures are compared at 32 px, or at their own side where that is smaller, with every picture
    of the data. Distances are in handcrafted features: not FID, and not to be set beside it.
    """
    output = Output(options["as_json"], options["quiet"])
    for path in (options["out"], options["grid"]):
        if path is not None:
            refuse_existing(path, options["overwrite"])
    plan = EvaluationPlan(
        SamplerConfig(
            kind=options["sampler"],
            num_steps=options["steps"],
            guidance_scale=options["guidance"],
            threshold=options["threshold"],
            grid=options["spacing"],
        ),
        options["count"],
        options["seeds"] or (0,),
        options["stop_at"],
        options["batch_size"],
    )
    opened = open_model(options, output)
    teacher = _teacher(options, plan, output)
    if teacher is not None and teacher.runtime.config.sides != opened.runtime.config.sides:
        raise MdmError("teacher: makes pictures of other sides than --model.")
    judges = _judges(options["inception"], options["clip"])
    dataset = open_dataset(
        options["data"],
        opened.runtime.config.side,
        background=options["background"],
        skin_tones=options["skin_tones"],
    )
    if options["captions_file"] is not None:
        dataset = with_captions(dataset, read_captions(options["captions_file"]))
    for warning in dataset.warnings:
        output.say(warning)
    began = time.perf_counter()
    total = plan.count * len(plan.seeds)
    with tqdm(total=total, unit="picture", disable=output.quiet) as bar:
        found = evaluate(opened.runtime, dataset, plan, bar.update, teacher, judges)
    report: dict[str, Any] = {
        "model": {"path": str(options["model"]), "sha256": opened.sha256},
        "data": {"name": options["data"], "fingerprint": dataset.fingerprint},
        "settings": dataclasses.asdict(plan)
        | {"backend": opened.backend, "dtype": options["precision"]},
        **_scores(found),
        "fetched": {judge.name: judge.value() for judge in judges},
        "seconds": round(time.perf_counter() - began, 2),
        "version": __version__,
    }
    if options["grid"] is not None:
        save_png(options["grid"], _paired(found.shown))
    if options["out"] is not None:
        with atomic_file(options["out"]) as file:
            file.write((json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    output.result(report, _text(report))


def _teacher(options: dict[str, Any], plan: EvaluationPlan, output: Output) -> Teacher | None:
    """The teacher with ddim and the guidance of the student's pictures."""
    if options["teacher"] is None:
        return None
    runtime = open_model(options | {"model": options["teacher"]}, output).runtime
    weight = plan.sampler.guidance_scale
    sampler = SamplerConfig("ddim", options["teacher_steps"], guidance_scale=weight)
    return Teacher(runtime, sampler)


def _judges(inception: bool, clip: bool) -> list[Judge]:
    if not inception and not clip:
        return []
    require("torch")
    from mdm_apple.torch.fid_clip import ClipScore, FrechetInception

    fid = [FrechetInception()] if inception else []
    return [*fid, *([ClipScore.fetched()] if clip else [])]


def _scores(found: Evaluation) -> dict[str, Any]:
    scores = list(found.scores.values())
    return {
        "side": found.side,
        "compared_at": found.compared_at,
        "gallery": found.gallery,
        "features": "layout: handcrafted, 112 numbers; not comparable to FID or KID",
        "mean": mean_scores(scores),
        "worst": worst_scores(scores),
        "seeds": {str(seed): dataclasses.asdict(s) for seed, s in found.scores.items()},
    }


def _paired(shown: list[Pair]) -> Pixels:
    """Pairs side by side, real on the left."""
    cells: list[Pixels] = []
    for pair in shown:
        real, made = to_pixels(np.stack([pair.real, pair.made]))
        cells.append(enlarge(np.concatenate([real, made], axis=1), GRID_SIDE))
    return tile(np.stack(cells), columns=min(GRID_COLUMNS, len(cells)), gap=6)


def _text(report: dict[str, Any]) -> str:
    mean, worst = report["mean"], report["worst"]
    lines = [
        f"{report['settings']['count']} captions per seed against {report['gallery']} pictures, "
        f"{report['side']} px compared at {report['compared_at']} px, {len(report['seeds'])} "
        "seeds: mean (worst)",
        f"  retrieval        top-5 {_percent(mean['top5'])} ({_percent(worst['top5'])}), "
        f"top-1 {_percent(mean['top1'])} ({_percent(worst['top1'])})",
        f"  white kept       {_percent(mean['white_share'])} ({_percent(worst['white_share'])})",
        f"  gradient ratio   {mean['gradient_ratio']:.3f} ({worst['gradient_ratio']:.3f})",
        f"  text-only error  {_numbers(mean['text_only_mse'])} per level",
        f"  between levels   {_numbers(mean['consistency'])} RMSE",
        f"  from the teacher {_numbers(mean['teacher_distance'])} RMSE, same noise",
        f"  layout features  Frechet {mean['layout_frechet']:.4f}, kernel "
        f"{mean['layout_kernel']:.5f}, precision {mean['layout_precision']:.3f}, recall "
        f"{mean['layout_recall']:.3f} (handcrafted, not FID)",
        *(f"  {name}  {value:.3f}" for name, value in report["fetched"].items()),
    ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{v:.4f}" for v in values) or "none"
