"""`mdm evaluate`."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from tqdm import tqdm

from mdm_apple.bundled_models import find_model
from mdm_apple.cli.model_options import FILE, FOLDER, LevelName
from mdm_apple.cli.motion_report import motion_text, motion_values
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
    renamed,
)
from mdm_apple.cli.scene_report import scene_text, scene_values
from mdm_apple.cli.upscale_report import triples, upscale_text, upscale_values
from mdm_apple.config.model import ModelConfig, Threshold
from mdm_apple.config.types import Background, Pixels, Precision
from mdm_apple.data.dataset import Dataset, with_captions
from mdm_apple.data.open import MOTION, SCENES, motion_counts, open_dataset
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError, require
from mdm_apple.evaluation.evaluate import (
    Evaluation,
    EvaluationPlan,
    Judge,
    Pair,
    Teacher,
    check_picture_model,
    evaluate,
    mean_scores,
    side_to_open,
    worst_scores,
)
from mdm_apple.evaluation.evaluate_motion import MotionPlan, check_motion_model, evaluate_motion
from mdm_apple.evaluation.evaluate_scenes import ScenePlan, check_scene_model, evaluate_scenes
from mdm_apple.evaluation.evaluate_upscale import UpscalePlan, check_upscale, evaluate_upscale
from mdm_apple.evaluation.trained_motion import judged_by
from mdm_apple.model import Model
from mdm_apple.open_model import Backend, Opening, OpenOptions, prepare
from mdm_apple.sampling.generate import check_request
from mdm_apple.sampling.inner_model import AskedLevel, side_of_level
from mdm_apple.sampling.pictures import enlarge, save_png, tile, to_pixels
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.sampling.walk import SamplerConfig, SamplerKind
from mdm_apple.storage.files import atomic_file
from mdm_apple.text.captions import read_captions
from mdm_apple.version import __version__

GRID_SIDE = 64  # smaller pictures are enlarged to this side
GRID_COLUMNS = 8


@dataclass(frozen=True)
class EvaluateRequest:
    """The options of `mdm evaluate`; None: not given."""

    model: str
    data: str
    count: int
    seeds: tuple[int, ...]
    sampler: SamplerKind | None
    steps: int | None
    spacing: Spacing | None
    guidance: float | None
    threshold: Threshold | None
    stop_at: AskedLevel | None
    captions: Path | None
    background: Background
    skin_tones: bool
    upscale: int | None
    teacher: str | None
    teacher_steps: int
    inception: bool
    clip: bool
    batch_size: int
    backend: Backend | None
    precision: Precision | None
    features: Path | None
    text_encoder: Path | None
    out: Path | None
    grid: Path | None
    overwrite: bool

    def settings(self, config: ModelConfig) -> SampleSettings:
        """How pictures are made. Raises ConfigError for a level that the model does not have."""
        return SampleSettings(
            self.sampler,
            self.steps,
            guidance=self.guidance,
            threshold=self.threshold,
            spacing=self.spacing,
            stop_at=side_of_level(config, self.stop_at),
        )


@click.command(
    epilog="""\b
Examples:
  mdm evaluate --model runs/emoji --data twemoji --guidance 4 --out scores.json --grid pairs.png
  mdm evaluate --model runs/scenes --data scenes --count 256 --eval-seed 1 --eval-seed 2 --json
"""
)
@click.option(
    "--model",
    metavar="NAME",
    default="box:student",
    show_default=True,
    help="A model folder, a bundle, box:emoji, box:student or box:motion.",
)
@click.option(
    "--data",
    required=True,
    metavar="twemoji|scenes|motion|DIR",
    help="Captioned real pictures, or scenes or motion: fixed captions, and a judge of "
    "what they state.",
)
@click.option(
    "--count", type=click.IntRange(4), default=512, show_default=True, help="Captions per seed."
)
@click.option(
    "--eval-seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    help="Seed of captions and noise; repeat for mean and worst. Default: 0.",
)
@click.option("--sampler", type=click.Choice(get_args(SamplerKind)), help="Default: the model's.")
@click.option("--steps", type=click.IntRange(1), help="Network evaluations. Default: the model's.")
@click.option("--spacing", type=click.Choice(get_args(Spacing)), help="Spacing of the timesteps.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is none. Default: the model's.")
@click.option("--threshold", type=click.Choice(get_args(Threshold)))
@click.option(
    "--stop-at",
    type=LevelName(),
    help="Run only the levels up to this: a side, such as 32, or of clips such as 16x16.",
)
@click.option("--captions", type=FILE, help="Only pictures with these captions, one per line.")
@click.option("--background", type=click.Choice(get_args(Background)), default="white")
@click.option("--skin-tones", is_flag=True, help="Include emoji with skin tones.")
@click.option(
    "--upscale",
    type=click.IntRange(1),
    metavar="SIDE",
    help="Instead, reduce pictures to this level, enlarge them, and compare with bicubic.",
)
@click.option(
    "--teacher",
    metavar="NAME",
    help="Also measure the distance to this model's pictures from the same noise.",
)
@click.option("--teacher-steps", type=click.IntRange(1), default=50, show_default=True)
@click.option("--inception", is_flag=True, help="Also FID; its network is downloaded once.")
@click.option("--clip", is_flag=True, help="Also CLIP score; its network is downloaded once.")
@click.option("--batch-size", type=click.IntRange(1, 1024), default=32, show_default=True)
@click.option("--backend", type=click.Choice(get_args(Backend)), help="Default: by the machine.")
@click.option("--precision", type=click.Choice(get_args(Precision)))
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option("--out", type=FILE, metavar="F.json", help="Save the scores to a file.")
@click.option("--grid", type=FILE, metavar="F.png", help="Save 64 pairs, real and generated.")
@renamed("--dtype", "--precision")
@overwrite_option
@output_options
@filling(EvaluateRequest)
def command(request: EvaluateRequest, output: Output) -> None:
    """Score a model: do its pictures match their captions, and are they clean and varied?

    Pictures are compared with every picture of the data at 32 px, or at their own side if that is
    smaller. Distances use handcrafted features: they are not FID and not comparable to it. With
    --data scenes, the captions of a fixed list are drawn, and each picture is judged by what its
    caption states; --count is then per row of the list. With --data motion, clips are compared with
    real clips of the same objects. Of its 320 captions, training never sees 32; with --count 128
    they are a quarter.
    """
    for path in (request.out, request.grid):
        if path is not None:
            refuse_existing(path, request.overwrite)
    if request.upscale is not None:
        _evaluate_upscale(request, request.upscale, output)
        return
    if request.data == SCENES:
        _evaluate_scenes(request, output)
        return
    if request.data.partition(":")[0] == MOTION:
        _evaluate_motion(request, output)
        return
    captions = None if request.captions is None else read_captions(request.captions)
    opening = prepare(find_model(request.model), _opening(request))
    settings = request.settings(opening.config)
    check_picture_model(opening.config, settings.stop_at)
    plan = EvaluationPlan(
        opening.check(settings, ()),
        request.count,
        request.seeds or (0,),
        settings.stop_at,
        request.batch_size,
    )
    teacher_opening = _teacher_opening(request, plan, opening.config)
    dataset = _pictures(request, side_to_open(opening.config, plan.stop_at), captions, output)
    output.say(f"loading {opening.named} on {opening.backend}")
    model = Model(opening, opening.load())
    teacher = None
    if teacher_opening is not None:
        teacher = Teacher(teacher_opening.load().runtime, _teacher_sampler(request, plan))
    judges = _judges(request.inception, request.clip)
    began = time.perf_counter()
    total = plan.count * len(plan.seeds)
    with tqdm(total=total, unit="picture", disable=output.quiet) as bar:
        found = evaluate(model.runtime, dataset, plan, bar.update, teacher, judges)
    report = _report(
        request,
        model,
        plan,
        {"name": request.data, "fingerprint": dataset.fingerprint},
        _scores(found) | {"fetched": {judge.name: judge.value() for judge in judges}},
        began,
    )
    if request.grid is not None:
        save_png(request.grid, _paired(found.shown))
    _save(request, report)
    output.result(report, _text(report))


def _pictures(
    request: EvaluateRequest, side: int, captions: tuple[str, ...] | None, output: Output
) -> Dataset:
    """The real pictures at a side, with a word on those that cannot be used."""
    dataset = open_dataset(
        request.data, side, background=request.background, skin_tones=request.skin_tones
    )
    if captions is not None:
        dataset = with_captions(dataset, captions)
    for warning in dataset.warnings:
        output.say(warning)
    return dataset


def _evaluate_scenes(request: EvaluateRequest, output: Output) -> None:
    _refuse_others(request, SCENES, {"captions": request.captions, "stop-at": request.stop_at})
    opening = prepare(find_model(request.model), _opening(request))
    sampler = opening.check(request.settings(opening.config), ())
    plan = ScenePlan(sampler, request.count, request.seeds or (0,), request.batch_size)
    check_scene_model(opening.config)
    output.say(f"loading {opening.named} on {opening.backend}")
    model = Model(opening, opening.load())
    began = time.perf_counter()
    with tqdm(total=plan.total, unit="picture", disable=output.quiet) as bar:
        found = evaluate_scenes(model.runtime, plan, bar.update)
    values = {"rows": scene_values(found)}
    report = _report(request, model, plan, {"name": request.data}, values, began)
    _save(request, report)
    output.result(report, scene_text(found))


def _evaluate_motion(request: EvaluateRequest, output: Output) -> None:
    _refuse_others(request, MOTION, {})
    motion_counts(request.data)  # refuses what is none, before a model is looked for
    captions = None if request.captions is None else read_captions(request.captions)
    opening = prepare(find_model(request.model), _opening(request))
    check_motion_model(opening.config)
    settings = request.settings(opening.config)
    data = judged_by(opening.named.path, request.data)
    plan = MotionPlan(
        opening.check(settings, ()),
        request.count,
        request.seeds or (0,),
        request.batch_size,
        captions=captions,
        stop_at=settings.stop_at,
        **motion_counts(data),
    )
    if data != request.data:
        output.say(f"data: judged by {data}, which {opening.named} was trained on.")
    output.say(f"loading {opening.named} on {opening.backend}")
    model = Model(opening, opening.load())
    began = time.perf_counter()
    with tqdm(total=plan.total, unit="clip", disable=output.quiet) as bar:
        found = evaluate_motion(model.runtime, plan, bar.update)
    report = _report(request, model, plan, {"name": data}, motion_values(found), began)
    _save(request, report)
    output.result(report, motion_text(found))


def _evaluate_upscale(request: EvaluateRequest, side: int, output: Output) -> None:
    _refuse(
        "--upscale",
        {
            "data": request.data if request.data.partition(":")[0] in (SCENES, MOTION) else None,
            "teacher": request.teacher,
            "inception": request.inception,
            "clip": request.clip,
        },
    )
    captions = None if request.captions is None else read_captions(request.captions)
    opening = prepare(find_model(request.model), _opening(request))
    settings = request.settings(opening.config)
    check_upscale(opening.config, side, settings.stop_at)
    sampler = opening.check(settings, ())
    plan = UpscalePlan(sampler, side, request.count, request.seeds or (0,), settings.stop_at)
    dataset = _pictures(request, side_to_open(opening.config, plan.stop_at), captions, output)
    output.say(f"loading {opening.named} on {opening.backend}")
    model = Model(opening, opening.load())
    began = time.perf_counter()
    total = plan.count * len(plan.seeds)
    with tqdm(total=total, unit="picture", disable=output.quiet) as bar:
        found = evaluate_upscale(model.runtime, dataset, plan, bar.update)
    data = {"name": request.data, "fingerprint": dataset.fingerprint}
    report = _report(request, model, plan, data, upscale_values(found), began)
    if request.grid is not None:
        save_png(request.grid, triples(found.shown))
    _save(request, report)
    output.result(report, upscale_text(report))


def _refuse_others(request: EvaluateRequest, data: str, more: dict[str, object]) -> None:
    """Refuse the options that data with a judge of its own has no use for."""
    _refuse(
        data,
        {
            **more,
            "grid": request.grid,
            "teacher": request.teacher,
            "inception": request.inception,
            "clip": request.clip,
            "skin-tones": request.skin_tones,
            "background": request.background != "white",
        },
    )


def _refuse(what: str, others: dict[str, object]) -> None:
    for name, given in others.items():
        if given:
            raise MdmError(f"{name}: does not apply to {what}; leave out --{name}.")


def _report(
    request: EvaluateRequest,
    model: Model,
    plan: EvaluationPlan | ScenePlan | MotionPlan | UpscalePlan,
    data: dict[str, str],
    scores: dict[str, Any],
    began: float,
) -> dict[str, Any]:
    """Scores with what made them."""
    return {
        "model": {"path": request.model, "sha256": model.sha256},
        "data": data,
        "settings": dataclasses.asdict(plan)
        | {"backend": model.backend, "precision": model.precision},
        **scores,
        "seconds": round(time.perf_counter() - began, 2),
        "version": __version__,
    }


def _save(request: EvaluateRequest, report: dict[str, Any]) -> None:
    if request.out is not None:
        with atomic_file(request.out) as file:
            file.write((json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())


def _opening(request: EvaluateRequest) -> OpenOptions:
    return OpenOptions(request.backend, request.precision, request.features, request.text_encoder)


def _teacher_opening(
    request: EvaluateRequest, plan: EvaluationPlan, config: ModelConfig
) -> Opening | None:
    """The teacher, if one is asked for; refuses one whose pictures have other sides."""
    if request.teacher is None:
        return None
    opening = prepare(find_model(request.teacher), _opening(request))
    if opening.config.clip_shapes != config.clip_shapes:
        raise MdmError(
            "teacher: makes pictures of other sides than --model; give one with the same sides."
        )
    check_request(opening.config, (), _teacher_sampler(request, plan), plan.stop_at)
    return opening


def _teacher_sampler(request: EvaluateRequest, plan: EvaluationPlan) -> SamplerConfig:
    """ddim with the guidance of the student's pictures."""
    return SamplerConfig("ddim", request.teacher_steps, guidance_scale=plan.sampler.guidance_scale)


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
