"""`mdm sample`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from mdm_apple.apple_system import core_ai_chooses_units
from mdm_apple.bundled_models import find_model
from mdm_apple.cli.clip_request import Like, clip_task, stop_side
from mdm_apple.cli.model_options import FILE, FOLDER, Gigabytes, LevelName, Number
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    renamed,
)
from mdm_apple.cli.picture_files import PictureFiles
from mdm_apple.cli.picture_request import asked_of, picture_options, picture_task
from mdm_apple.cli.prompts_file import SeedRange
from mdm_apple.cli.sample_task import (
    BITS,
    SampleRequest,
    at_level,
    checked,
    clips_of,
    opening_of,
    task_of,
)
from mdm_apple.config.model import LEAST_FPS, MOST_FPS, Threshold
from mdm_apple.config.types import ComputeUnits, Precision
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.model import Model
from mdm_apple.open_model import Backend, prepare
from mdm_apple.sampling.generate import check_given, evaluations
from mdm_apple.sampling.picture import StepPreview
from mdm_apple.sampling.pictures import read_recipe
from mdm_apple.sampling.remarks import remarks
from mdm_apple.sampling.walk import SamplerKind


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
    help="A model folder, a bundle, box:emoji, box:student or box:motion (clips). Default: "
    "box:student, or box:emoji for what a student cannot do.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, MAX_SEED),
    multiple=True,
    help="May be repeated. Default: a random one, which is printed.",
)
@click.option(
    "--prompts",
    "prompts_file",
    type=FILE,
    metavar="FILE",
    help="A prompt a line, or a JSON object a line with settings of its own. Needs --out.",
)
@click.option("--seeds", "seed_range", type=SeedRange(), help="A range of seeds, such as 1-16.")
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
@click.option(
    "--frames",
    type=click.IntRange(1),
    help="Frames of a clip: those of the model. Pictures of --between, default: 9.",
)
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
@picture_options
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
    Pictures can begin with others: --image, --mask, --extend, --vary and --between are explained in
    docs/pictures_in.md.
    A clip becomes an animated .png, or what --out names: .webp, .gif, .mp4 or .mov.
    """
    source = request.like or request.vary
    like = None if source is None else read_recipe(source)
    task = task_of(request, like)
    opening = prepare(find_model(task.model), opening_of(request, task))
    known = None if like is None or source is None else Like(source, like)
    task = at_level(task, stop_side(opening.config, opening.named.name, request.stop_at, known))
    stop_at = task.settings.stop_at
    clip, clip_remarks = clip_task(opening.config, stop_at, clips_of(request), known)
    samplers = checked(opening, task, request.model is None and like is None)
    picture = picture_task(opening.config, stop_at, asked_of(request), known)
    given = clip.given if picture is None else picture
    for sampler in set(samplers):
        check_given(opening.config, sampler, stop_at, given)
    files = PictureFiles.of(
        request.out,
        task.prompts,
        request.previews,
        request.overwrite,
        clip.fps,
        request.sheet,
        grows=request.prompts_file is not None,
    )
    if task.remark is not None:
        output.say(task.remark)
    folder = opening.named.path
    for remark in (
        *remarks(folder, opening.config, samplers[0], task.prompts, stop_at, request.text_encoder),
        *clip_remarks,
        *files.remarks(),
    ):
        output.say(remark)
    if not request.seeds and request.seed_range is None and like is None:
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
            f"like: {source} was made with other weights than {model.name} holds; expect "
            "a different picture."
        )
    if model.quantized is not None:
        output.say(model.quantized)
    with files.owned():
        recipes = [
            model.recipe(prompt, sampler, stop_at, given, clip.fps)
            for prompt, sampler in zip(task.prompts, samplers, strict=True)
        ]
        done = files.done(recipes)
        if done:
            what = "pictures" if clip.fps is None else "clips"
            output.say(f"{len(done)} of {len(task.prompts)} {what} are there already.")
        todo = [k for k in range(len(task.prompts)) if k not in done]
        runs = [(each, list(ks)) for each, ks in groupby(todo, key=lambda k: task.each[k])]
        total = sum(
            evaluations(opening.config, samplers[ks[0]], given) * -(-len(ks) // request.batch_size)
            for _, ks in runs
        )
        with _progress(total, output) as progress:
            for settings, ks in runs:
                made = model.pictures(
                    [task.prompts[k] for k in ks],
                    settings,
                    batch_size=request.batch_size,
                    preview_every=request.preview_every if request.previews else None,
                    progress=progress,
                    given=given,
                    fps=clip.fps,
                )
                for k, picture_made in zip(ks, made, strict=True):
                    files.write(k, picture_made)
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


@contextmanager
def _progress(total: int, output: Output) -> Generator[Callable[[StepPreview], None]]:
    """A progress bar over the steps of all batches."""
    with tqdm(total=total, unit="step", disable=output.quiet) as bar:

        def advance(_: StepPreview) -> None:
            bar.update()

        yield advance
