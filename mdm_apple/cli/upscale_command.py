"""`mdm upscale`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from mdm_apple.bundled_models import find_model
from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.cli.picture_files import PICTURE
from mdm_apple.cli.picture_request import background_option
from mdm_apple.config.types import Precision
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.errors import MdmError
from mdm_apple.given_pictures.picture import small_picture
from mdm_apple.model import Model
from mdm_apple.open_model import Backend, OpenOptions, prepare
from mdm_apple.sampling.generate import Prompt, check_given, evaluations, random_seed
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.remarks import remarks
from mdm_apple.sampling.settings import SampleSettings
from mdm_apple.sampling.walk import SamplerKind
from mdm_apple.text.captions import as_text


@dataclass(frozen=True)
class UpscaleRequest:
    """The options of `mdm upscale`; None: not given."""

    small: Path
    prompt: str | None
    to: int | None
    resize: bool
    background: str | None
    model: str
    seed: int | None
    sampler: SamplerKind | None
    steps: int | None
    guidance: float | None
    backend: Backend | None
    precision: Precision | None
    features: Path | None
    text_encoder: Path | None
    out: Path | None
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm upscale small.png
  mdm upscale small.png --prompt "red heart" --to 64 --out large.png
"""
)
@click.argument("small", type=FILE)
@click.option("--prompt", help="What the picture shows; enlarging is better with it.")
@click.option("--to", type=click.IntRange(1), help="The side to make. Default: the model's.")
@click.option(
    "--resize", is_flag=True, help="Reduce a picture of another size to the nearest lower level."
)
@background_option
@click.option(
    "--model",
    metavar="NAME",
    default="box:emoji",
    show_default=True,
    help="A model folder, a bundle, box:emoji or box:student.",
)
@click.option(
    "--seed", type=click.IntRange(0, MAX_SEED), help="Default: a random one, which is printed."
)
@click.option("--sampler", type=click.Choice(get_args(SamplerKind)))
@click.option("--steps", type=click.IntRange(1), help="Network evaluations.")
@click.option("--guidance", type=float, help="Guidance scale; 1 is none.")
@click.option("--backend", type=click.Choice(get_args(Backend)), help="Default: by the machine.")
@click.option("--precision", type=click.Choice(get_args(Precision)))
@click.option("--features", type=FILE, help="Text features made by mdm embed.")
@click.option("--text-encoder", type=FOLDER, help="Folder of the frozen text encoder.")
@click.option(
    "--out", type=FILE, metavar="FILE.png", help="Default: the name of SMALL and the new side."
)
@overwrite_option
@output_options
@filling(UpscaleRequest)
def command(request: UpscaleRequest, output: Output) -> None:
    """Enlarge a small picture with a model that makes pictures of its size on the way.

    The side of SMALL names a level of the model. That level and those below are kept, and the ones
    above are made so that they pool back to SMALL, within 1/255.
    """
    opening = prepare(
        find_model(request.model),
        OpenOptions(request.backend, request.precision, request.features, request.text_encoder),
    )
    side = opening.config.sides[level_of_side(opening.config, request.to)]
    out = request.out or Path(f"{request.small.stem}_{side}px{PICTURE}")
    if out.suffix.lower() != PICTURE:
        raise MdmError(f"out: pictures are written as .png, got {out}.")
    refuse_existing(out, request.overwrite)
    seed = random_seed() if request.seed is None else request.seed
    prompt = Prompt(as_text(request.prompt or ""), seed)
    settings = SampleSettings(
        request.sampler, request.steps, guidance=request.guidance, stop_at=request.to
    )
    sampler = opening.check(settings, [prompt])
    given = small_picture(
        opening.config,
        request.to,
        request.small,
        resize=request.resize,
        background=request.background,
    )
    check_given(opening.config, sampler, request.to, given)
    folder = opening.named.path
    if prompt.text:
        asked = folder, opening.config, sampler, [prompt], request.to, request.text_encoder
        for remark in remarks(*asked):
            output.say(remark)
    if request.seed is None:
        output.say(f"seed {seed}")
    output.say(f"loading {opening.named} on {opening.backend}")
    model = Model(opening, opening.load(prompt, request.to))
    total = evaluations(opening.config, sampler, given)
    with tqdm(total=total, unit="step", disable=output.quiet) as bar:

        def advance(_: object) -> None:
            bar.update()

        (picture,) = model.pictures([prompt], settings, progress=advance, given=given)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    values = {"file": str(out), "model": model.name, "seed": seed, "from": given.side, "to": side}
    output.result(values, str(out))
