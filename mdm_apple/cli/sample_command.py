"""`mdm sample`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click
from tqdm import tqdm

from mdm_apple.apple_system import core_ai_chooses_units
from mdm_apple.bundled_models import find_model
from mdm_apple.cli.clip_request import ClipRequest, Like, clip_task, stop_side
from mdm_apple.cli.model_options import FILE, FOLDER, Gigabytes, LevelName, Number
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    renamed,
)
from mdm_apple.cli.picture_files import PictureFiles, begun_seed
from mdm_apple.config.model import LEAST_FPS, MOST_FPS, Threshold
from mdm_apple.config.types import Bits, ComputeUnits, Precision
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.errors import MdmError
from mdm_apple.model import Model
from mdm_apple.open_model import Backend, Opening, OpenOptions, prepare
from mdm_apple.sampling.generate import Prompt, random_seed
from mdm_apple.sampling.inner_model import AskedLevel
from mdm_apple.sampling.picture import StepPreview
from mdm_apple.sampling.pictures import Recipe, read_recipe
from mdm_apple.sampling.remarks import remarks
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.sampling.walk import SamplerConfig, SamplerKind
from mdm_apple.text.captions import as_text

BITS: dict[str, Bits] = {"8": 8, "4": 4}


@dataclass(frozen=True)
class SampleRequest:
    """The options of `mdm sample`; None: not given."""

    words: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    model: str | None
    negative: str | None
    steps: int | None
    full_table: bool
    sampler: SamplerKind | None
    eta: float | None
    guidance: float | None
    threshold: Threshold | None
    spacing: Spacing | None
    stop_at: AskedLevel | None
    frames: int | None
    fps: float | None
    first_frame: Path | None
    last_frame: Path | None
    sheet: Path | None
    previews: bool
    preview_every: int
    batch_size: int
    like: Path | None
    backend: Backend | None
    compute_units: ComputeUnits | None
    precision: Precision | None
    quantize: Literal["8", "4"] | None
    low_memory: bool
    memory_limit: float | None
    features: Path | None
    text_encoder: Path | None
    out: Path | None
    overwrite: bool


@dataclass(frozen=True)
class Task:
    """What to make and with which model. remark: why this model, if the caller named none."""

    model: str
    remark: str | None
    prompts: list[Prompt]
    settings: SampleSettings
    precision: Precision | None
    quantize: Bits | None


@click.command(
    epilog="""\b
Examples:
  mdm sample "red heart"
  mdm sample "red heart" "cat face" --model runs/emoji --seed 1 --seed 2 \\
      --steps 25 --guidance 4 --previews --out pictures
"""
)
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompt", "prompts", multiple=True, help="The same as PROMPT; may be repeated.")
@click.option(
    "--model",
    metavar="NAME",
    help="A model folder, a bundle, box:emoji or box:student. Default: box:student, or box:emoji "
    "for what a student cannot do.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, MAX_SEED),
    multiple=True,
    help="May be repeated. Default: a random one, which is printed.",
)
@click.option("--negative", help="What the picture should not show.")
@click.option("--steps", type=click.IntRange(1), help="Network evaluations.")
@click.option("--full-table", is_flag=True, help="Use every timestep of the table.")
@click.option("--sampler", type=click.Choice(get_args(SamplerKind)))
@click.option("--eta", type=click.FloatRange(0, 1), help="Noise that ddim adds; default 0.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is none.")
@click.option("--threshold", type=click.Choice(get_args(Threshold)))
@click.option("--spacing", type=click.Choice(get_args(Spacing)), help="Spacing of the timesteps.")
@click.option(
    "--stop-at",
    type=LevelName(),
    help="Run only the levels up to this: a side, such as 32, or of clips such as 16x32.",
)
@click.option("--frames", type=click.IntRange(1), help="Frames of a clip: those of the model.")
@click.option(
    "--fps",
    type=Number(LEAST_FPS, MOST_FPS),
    help="Frames a second of a clip; default: the model's.",
)
@click.option(
    "--first-frame",
    type=FILE,
    metavar="FILE",
    help="A picture that a clip begins with, or a clip, of which it is the last frame.",
)
@click.option(
    "--last-frame",
    type=FILE,
    metavar="FILE",
    help="A picture that a clip ends with, or a clip, of which it is the first frame.",
)
@click.option("--sheet", type=FILE, metavar="FILE.png", help="Also save all frames of clips here.")
@click.option("--previews", is_flag=True, help="Also save every level at some steps, as a strip.")
@click.option("--preview-every", type=click.IntRange(1), default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option(
    "--like", type=FILE, metavar="FILE", help="Repeat the recipe of this picture or clip."
)
@click.option("--backend", type=click.Choice(get_args(Backend)), help="Default: by the machine.")
@click.option(
    "--compute-units",
    type=click.Choice(get_args(ComputeUnits)),
    help="Compute units of a Mac, for a bundle on Core ML or Core AI. Default: the bundle's for "
    "Core ML, the system's choice for Core AI.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Default: fp32 for a model folder, fp16 for a bundle.",
)
@click.option(
    "--quantize",
    type=click.Choice(list(BITS)),
    help="Bits of Linear layers (MLX only); prints the sizes.",
)
@click.option("--low-memory", is_flag=True, help="Release the text encoder early (MLX only).")
@click.option("--memory-limit", type=Gigabytes(), help="Memory limit that MLX tries to keep.")
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Default: the prompt and the seed as a file name.",
)
@renamed("--grid", "--spacing")
@renamed("--dtype", "--precision")
@overwrite_option
@output_options
@filling(SampleRequest)
def command(request: SampleRequest, output: Output) -> None:
    """Make pictures or clips from prompts, as the model does.

    Without --out, each picture becomes a file named after its prompt and seed. With --out, several
    pictures go into a folder, with a grid of them all; each is written as soon as it is made, and
    after an interruption the same command makes the rest.
    The same seed gives the same picture on every backend. Options left out take the values that
    suit the model.
    A clip becomes an animated .png, or what --out names: .webp, .gif, .mp4 or .mov.
    """
    like = None if request.like is None else read_recipe(request.like)
    task = _task(request, like)
    opening = prepare(find_model(task.model), _opening(request, task))
    known = None if like is None or request.like is None else Like(request.like, like)
    task = _at_level(task, stop_side(opening.config, opening.named.name, request.stop_at, known))
    clip, clip_remarks = clip_task(opening.config, task.settings.stop_at, _clips(request), known)
    files = PictureFiles.of(
        request.out, task.prompts, request.previews, request.overwrite, clip.fps, request.sheet
    )
    sampler = _checked(opening, task, request.model is None and like is None)
    if task.remark is not None:
        output.say(task.remark)
    folder, stop_at = opening.named.path, task.settings.stop_at
    for remark in (
        *remarks(folder, opening.config, sampler, task.prompts, stop_at, request.text_encoder),
        *clip_remarks,
        *files.remarks(),
    ):
        output.say(remark)
    if not request.seeds and like is None:
        output.say(f"seed {task.prompts[0].seed}")
    output.say(f"loading {opening.named} on {opening.backend}")
    if opening.backend == "coreai" and not core_ai_chooses_units():
        output.say(
            "outside macOS 27, Apple's runtime interprets the packages on one thread, so a step "
            "takes seconds or minutes; the bar shows how many."
        )
    model = Model(opening, opening.load(task.prompts[0], stop_at))
    if like is not None and like.model != model.sha256:
        output.say(
            f"like: {request.like} was made with other weights than {model.name} holds; expect "
            "a different picture."
        )
    if model.quantized is not None:
        output.say(model.quantized)
    with files.owned():
        how = sampler, stop_at, clip.given, clip.fps
        done = files.done([model.recipe(prompt, *how) for prompt in task.prompts])
        if done:
            what = "pictures" if clip.fps is None else "clips"
            output.say(f"{len(done)} of {len(task.prompts)} {what} are there already.")
        todo = [k for k in range(len(task.prompts)) if k not in done]
        with _progress(sampler, len(todo), request.batch_size, output) as progress:
            made = model.pictures(
                [task.prompts[k] for k in todo],
                task.settings,
                batch_size=request.batch_size,
                preview_every=request.preview_every if request.previews else None,
                progress=progress,
                given=clip.given,
                fps=clip.fps,
            )
            for k, picture in zip(todo, made, strict=True):
                files.write(k, picture)
        written = files.finish()
    memory = model.used_memory()
    if memory:
        output.say(
            "peak memory {peak_memory_gb:.3f} GB, limit {memory_limit_gb:.2f} GB.".format(**memory)
        )
    seeds = list(dict.fromkeys(p.seed for p in task.prompts))
    output.result(
        {"files": written, "model": model.name, "seeds": seeds, **memory}, "\n".join(written)
    )


def _task(request: SampleRequest, like: Recipe | None) -> Task:
    """Prompts with seeds, settings and model from the options, or from the picture of --like."""
    texts = tuple(map(as_text, request.words + request.prompts))
    seeds, negative = request.seeds, as_text(request.negative or "")
    settings = SampleSettings(
        request.sampler,
        request.steps,
        request.full_table,
        request.eta,
        request.guidance,
        request.threshold,
        request.spacing,
    )
    precision = request.precision
    quantize = None if request.quantize is None else BITS[request.quantize]
    if like is not None:
        if texts or seeds:
            raise MdmError("like: brings its own prompt and seed, so leave out PROMPT and --seed.")
        texts, seeds = (like.prompt,), (like.seed,)
        negative = like.negative if request.negative is None else negative
        settings = _varied(like, settings)
        precision, quantize = precision or like.precision, quantize or like.quantize
    if not texts:
        raise MdmError('prompt: say what to draw, as in mdm sample "red heart", or give --like.')
    if not seeds:
        begun = None if request.overwrite else begun_seed(request.out, texts, negative)
        seeds = (random_seed() if begun is None else begun,)
    prompts = [Prompt(text, seed, negative) for text in texts for seed in seeds]
    model, remark = _default_model(settings, bool(negative), request.previews, like)
    if request.model is not None:
        model, remark = request.model, None
    return Task(model, remark, prompts, settings, precision, quantize)


def _varied(like: Recipe, asked: SampleSettings) -> SampleSettings:
    """The settings of a picture, overridden by the options given with --like."""
    whole_table = asked.full_table or (asked.steps is None and like.steps is None)
    return SampleSettings(
        asked.sampler or like.sampler,
        asked.steps or like.steps,
        whole_table,
        like.eta if asked.eta is None else asked.eta,
        like.guidance if asked.guidance is None else asked.guidance,
        asked.threshold or like.threshold,
        asked.spacing or like.grid,
    )


def _at_level(task: Task, stop_at: int | None) -> Task:
    return dataclasses.replace(task, settings=dataclasses.replace(task.settings, stop_at=stop_at))


def _clips(request: SampleRequest) -> ClipRequest:
    return ClipRequest(
        request.frames, request.fps, request.sheet, request.first_frame, request.last_frame
    )


def _default_model(
    settings: SampleSettings, negative: bool, previews: bool, like: Recipe | None
) -> tuple[str, str | None]:
    """The bundled model that can do what is asked, and the reason if it is not the student."""
    if like is not None:
        return ("box:student" if settings.sampler == "student" else "box:emoji"), None
    reasons = {
        "takes no --negative": negative,
        "draws in one step, which leaves nothing to preview": previews,
        "takes no other --sampler": settings.sampler not in (None, "student"),
        "takes no --full-table": settings.full_table,
        "takes no --eta": settings.eta is not None,
        "takes no --threshold": settings.threshold is not None,
        "takes no --spacing": settings.spacing is not None,
    }
    true = [reason for reason, given in reasons.items() if given]
    if settings.sampler == "student" or not true:
        return "box:student", None
    return "box:emoji", f"model: box:emoji, because box:student {true[0]}."


def _opening(request: SampleRequest, task: Task) -> OpenOptions:
    captions = tuple(caption for p in task.prompts for caption in (p.text, p.negative))
    return OpenOptions(
        request.backend,
        task.precision,
        request.features,
        request.text_encoder,
        task.quantize,
        captions if request.low_memory else None,
        request.memory_limit,
        request.compute_units,
    )


def _checked(opening: Opening, task: Task, by_default: bool) -> SamplerConfig:
    """The sampler. A refusal of the default model names the other one, if that can do it."""
    try:
        return opening.check(task.settings, task.prompts)
    except MdmError as error:
        if by_default and opening.config.distilled is not None and _emoji_can(task):
            raise MdmError(f"{str(error).rstrip('.')}, or use --model box:emoji.") from None
        raise


def _emoji_can(task: Task) -> bool:
    try:
        prepare(find_model("box:emoji")).check(task.settings, task.prompts)
    except MdmError:
        return False
    return True


@contextmanager
def _progress(
    sampler: SamplerConfig, count: int, batch_size: int, output: Output
) -> Generator[Callable[[StepPreview], None]]:
    """A progress bar over the steps of all batches."""
    batches = -(-count // batch_size)
    total = None if sampler.num_steps is None else sampler.num_steps * batches
    with tqdm(total=total, unit="step", disable=output.quiet) as bar:

        def advance(_: StepPreview) -> None:
            bar.update()

        yield advance
