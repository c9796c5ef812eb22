"""`mdm sample`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from mdm_apple import __version__
from mdm_apple.cli.model_options import FILE, FOLDER, Gigabytes
from mdm_apple.cli.open_model import BACKENDS, Opened, bits_of, model_option, open_model
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.config.model import ModelConfig
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Preview, Prompt, Runtime, generate
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.pictures import (
    Pixels,
    Recipe,
    as_png,
    read_recipe,
    tile,
    tile_steps,
    to_pixels,
)
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.files import new_files

SAMPLERS = ("ddpm", "ddim", "dpmpp", "student")
OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# options that --like takes from the picture: name here -> field of its recipe
FROM_RECIPE = {
    "sampler": "sampler",
    "steps": "steps",
    "eta": "eta",
    "guidance": "guidance",
    "threshold": "threshold",
    "grid": "grid",
    "stop_at": "stop_at",
    "negative": "negative",
    "precision": "precision",
    "quantize": "quantize",
}


@dataclass(frozen=True)
class Made:
    """The pictures of one prompt and seed, (H, W, 3) per level, and its previews."""

    prompt: Prompt
    levels: list[Pixels]
    previews: list[list[Pixels]]


@click.command(
    epilog="""\b
Examples:
  mdm sample --model runs/emoji --prompt "red heart" --seed 7 --out heart.png
  mdm sample --model runs/emoji --prompt "red heart" --prompt "cat face" --seed 1 --seed 2 \\
      --steps 25 --guidance 4 --previews --out pictures
"""
)
@model_option
@click.option("--prompt", "prompts", multiple=True, help="Repeat for several.")
@click.option(
    "--seed", "seeds", type=click.IntRange(0, 2**32 - 1), multiple=True, help="Default 0."
)
@click.option("--negative", default="", help="What the picture should not be.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default="50, of a student 1")
@click.option("--full-table", is_flag=True, help="Every timestep of the table instead of --steps.")
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True)
@click.option("--eta", type=click.FloatRange(0, 1), default=0.0, help="Noise of ddim.")
@click.option(
    "--guidance",
    type=float,
    default=1.0,
    show_default="1: none, of a student the middle of what it learned",
)
@click.option("--threshold", type=click.Choice(["none", "clip", "dynamic", "dynamic_if"]))
@click.option("--grid", type=click.Choice(["even", "log_snr"]), default="even", show_default=True)
@click.option("--stop-at", type=click.IntRange(1), metavar="SIZE", help="Run up to this side only.")
@click.option("--previews", is_flag=True, help="Also every level at some steps, as a strip.")
@click.option("--preview-every", type=click.IntRange(1), default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--like", type=FILE, metavar="FILE.png", help="Repeat what made this picture.")
@click.option("--backend", type=click.Choice(BACKENDS), default=None, help="Default: by machine.")
@click.option(
    "--dtype",
    "precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Default: fp32 for a model folder, fp16 for a bundle.",
)
@click.option(
    "--quantize", type=click.Choice(["8", "4"]), help="Bits of Linear layers; shows sizes. MLX."
)
@click.option("--low-memory", is_flag=True, help="Release the text encoder before sampling. MLX.")
@click.option(
    "--memory-limit",
    type=Gigabytes(),
    help="Memory that MLX keeps to where it can.",
)
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE|DIR")
@overwrite_option
@output_options
def command(**options: Any) -> None:
    """Make pictures from prompts.

    One prompt and seed give one FILE.png; more give a DIR with a picture each and a grid. The same
    seed means the same picture on every backend.
    """
    output = Output(options["as_json"], options["quiet"])
    like = None if options["like"] is None else read_recipe(options["like"])
    prompts, sampler, stop_at = _request(options, like)
    out: Path = options["out"]
    single = _is_single(out, len(prompts))
    refuse_existing(out, options["overwrite"])
    if single and options["previews"]:
        refuse_existing(_strip_of(out), options["overwrite"])
    opened = open_model(options, output, prompts)
    sampler = _of_student(sampler, opened.runtime.config, like)
    level_of_side(opened.runtime.config, stop_at)
    for remark in _remarks(opened, sampler, options, like):
        output.say(remark)
    made = _make(opened.runtime, prompts, sampler, stop_at, options, output)
    memory = _memory_used(opened.backend, options["memory_limit"], output)
    folder = out.parent if single else out
    files: list[str] = []
    with new_files(folder) as put:

        def save(path: Path, pixels: Pixels, recipe: Recipe | None = None) -> None:
            put(path.name, as_png(pixels, recipe))
            files.append(str(path))

        for k, picture in enumerate(made):
            path = out if single else out / f"{k:04d}_{_slug(picture.prompt)}.png"
            recipe = _recipe(picture.prompt, sampler, stop_at, opened, options)
            save(path, picture.levels[0], recipe)
            if picture.previews:
                save(_strip_of(path), tile_steps(picture.previews))
        if not single:
            columns = min(8, len(made))
            save(out / "grid.png", tile(_stack([m.levels[0] for m in made]), columns))
    output.result({"files": files, **memory}, "\n".join(files))


def _strip_of(picture: Path) -> Path:
    """Where the previews of a picture go."""
    return picture.with_name(f"{picture.stem}_steps.png")


def _stack(pictures: Sequence[Pixels]) -> Pixels:
    import numpy as np

    return np.stack(list(pictures))


def _is_single(out: Path, pictures: int) -> bool:
    """Whether `out` is the file of one picture; refuses a file name that cannot be honoured."""
    suffix = out.suffix.lower()
    if suffix == ".png" and pictures > 1:
        raise MdmError(f"out: {pictures} pictures need a folder, got the file name {out}.")
    if suffix in OTHER_PICTURES:
        raise MdmError(f"out: pictures are written as .png, got {out}.")
    return suffix == ".png"


def _remarks(
    opened: Opened, sampler: SamplerConfig, options: dict[str, Any], like: Recipe | None
) -> list[str]:
    """What a person should know of a request that is not wrong but may surprise."""
    remarks: list[str] = []
    if like is not None and like.model != opened.sha256:
        remarks.append(
            f"like: {options['like']} was made from other weights than {options['model']} holds; "
            "expect another picture."
        )
    if options["negative"] and sampler.guidance_scale == 1:
        remarks.append("negative: has no effect at guidance 1; give --guidance, such as 4.")
    config = opened.runtime.config
    if level_of_side(config, options["stop_at"]) and not config.mixed_training:
        remarks.append(
            "stop-at: this model was not trained with mixed resolutions, so its inner levels alone "
            "may make worse pictures."
        )
    return remarks


def _request(
    options: dict[str, Any], like: Recipe | None
) -> tuple[list[Prompt], SamplerConfig, int | None]:
    """Prompts with seeds, sampler and stop from the options, or from the picture of --like."""
    if like is not None:
        if options["prompts"] or options["seeds"]:
            raise MdmError(
                "like: brings its own prompt and seed, so leave out --prompt and --seed."
            )
        source = click.get_current_context().get_parameter_source
        kept = [name for name in FROM_RECIPE if source(name) is not ParameterSource.COMMANDLINE]
        for name in kept:  # what is given beside --like varies the picture
            options[name] = getattr(like, FROM_RECIPE[name])
        if "steps" in kept:
            options["full_table"] = options["full_table"] or like.steps is None
        options["prompts"], options["seeds"] = (like.prompt,), (like.seed,)
    if not options["prompts"]:
        raise MdmError("prompt: give at least one --prompt, or --like FILE.png.")
    seeds = options["seeds"] or (0,)
    prompts = [
        Prompt(text, seed, options["negative"]) for text in options["prompts"] for seed in seeds
    ]
    sampler = SamplerConfig(
        kind=options["sampler"],
        num_steps=None if options["full_table"] else options["steps"],
        eta=options["eta"],
        guidance_scale=options["guidance"],
        threshold=options["threshold"],
        grid=options["grid"],
    )
    return prompts, sampler, options["stop_at"]


def _of_student(sampler: SamplerConfig, config: ModelConfig, like: Recipe | None) -> SamplerConfig:
    """What was not asked for as it suits a student: one step, the middle of its guidance."""
    source = click.get_current_context().get_parameter_source
    if config.distilled is None or sampler.kind != "student" or like is not None:
        return sampler
    left = [n for n in ("steps", "guidance") if source(n) is not ParameterSource.COMMANDLINE]
    if "steps" in left and sampler.num_steps is not None:
        sampler = replace(sampler, num_steps=1)
    if "guidance" in left and config.distilled.guidance is not None:
        sampler = replace(sampler, guidance_scale=sum(config.distilled.guidance) / 2)
    return sampler


def _memory_used(backend: str, limit: float | None, output: Output) -> dict[str, Any]:
    """Says what MLX used at most; other backends do not count it."""
    if backend != "mlx":
        return {}
    from mdm_apple.mlx.memory import memory_limit, peak_memory

    peak, allowed = peak_memory(), memory_limit() if limit is None else limit
    output.say(f"peak memory {peak:.3f} GB, limit {allowed:.2f} GB.")
    return {"peak_memory_gb": peak, "memory_limit_gb": allowed}


def _make(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    sampler: SamplerConfig,
    stop_at: int | None,
    options: dict[str, Any],
    output: Output,
) -> list[Made]:
    made: list[Made] = []
    size = options["batch_size"]
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        shown: list[Preview] = []
        last: Preview | None = None
        steps = generate(runtime, batch, sampler, stop_at)
        for step in tqdm(steps, total=sampler.num_steps, unit="step", disable=output.quiet):
            if options["previews"] and step.index % options["preview_every"] == 0:
                shown.append(step)
            last = step
        assert last is not None
        assert last.final is not None, "the last step carries the result"
        final = [to_pixels(level) for level in last.final]
        strips = [[to_pixels(level) for level in step.x0] for step in shown]
        if options["previews"]:
            strips.append(final)
        for k, prompt in enumerate(batch):
            made.append(
                Made(prompt, [level[k] for level in final], [[v[k] for v in s] for s in strips])
            )
    return made


def _recipe(
    prompt: Prompt,
    sampler: SamplerConfig,
    stop_at: int | None,
    opened: Opened,
    options: dict[str, Any],
) -> Recipe:
    return Recipe(
        prompt=prompt.text,
        negative=prompt.negative,
        seed=prompt.seed,
        sampler=sampler.kind,
        steps=sampler.num_steps,
        eta=sampler.eta,
        guidance=sampler.guidance_scale,
        threshold=sampler.threshold,
        grid=sampler.grid,
        stop_at=stop_at,
        model=opened.sha256,
        backend=opened.backend,
        precision=options["precision"],
        version=__version__,
        quantize=bits_of(options),
    )


def _slug(prompt: Prompt) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in prompt.text.lower())
    return f"{'-'.join(filter(None, kept.split('-')))[:40] or 'empty'}_{prompt.seed}"
