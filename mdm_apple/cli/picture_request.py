"""What `mdm sample` is asked about pictures that are given: options, and what --like brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mdm_apple.cli.clip_request import Like
from mdm_apple.cli.model_options import FILE, Number
from mdm_apple.config.model import ModelConfig
from mdm_apple.diffusion.noise import MAX_SEED
from mdm_apple.errors import MdmError
from mdm_apple.given_pictures.margins import Margins
from mdm_apple.given_pictures.picture import PictureAsked, small_picture
from mdm_apple.sampling.given_picture import MOST_HARMONIZING, GivenPicture

Command = TypeVar("Command", bound=Callable[..., Any])

background_option = click.option(
    "--background", metavar="COLOR", help="Behind a picture that is transparent, such as white."
)


def picture_options(command: Command) -> Command:
    """Adds the options of a given picture, and of pictures near or between others."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


OPTIONS = (
    click.option("--image", type=FILE, metavar="FILE", help="A picture to start from."),
    click.option(
        "--strength",
        type=Number(0, 1),
        help="How much of --image is made anew: 0 none, 1 all. Default: 0.6, or 1 with --mask or "
        "--extend.",
    ),
    click.option(
        "--mask",
        type=FILE,
        metavar="FILE",
        help="A picture of --image's size; what is white in it is made anew, the rest is kept.",
    ),
    click.option(
        "--extend",
        metavar="L,T,R,B",
        help="Pixels to make anew at the left, top, right and bottom of --image.",
    ),
    click.option(
        "--harmonize",
        type=click.IntRange(0, MOST_HARMONIZING),
        help="Repeat each of the noisier steps so many times, to fit the kept part. Default: 0.",
    ),
    background_option,
    click.option(
        "--vary",
        type=FILE,
        metavar="FILE",
        help="Vary a picture made by mdm sample: its noise moves towards that of other seeds.",
    ),
    click.option(
        "--amount", type=Number(0, 1), help="How far --vary goes: 0 is the same. Default: 0.3."
    ),
    click.option("--count", type=click.IntRange(1, 4096), help="Pictures of --vary. Default: 1."),
    click.option(
        "--between",
        nargs=2,
        metavar="PROMPT PROMPT",
        help="Make --frames pictures on the way from one prompt to another.",
    ),
    click.option(
        "--to-seed",
        type=click.IntRange(0, MAX_SEED),
        help="The seed that --between moves to. Default: none.",
    ),
)


def picture_task(
    config: ModelConfig, stop_at: int | None, asked: PictureAsked, like: Like | None
) -> GivenPicture | None:
    """The picture to start from, with what the file of --like has that is not asked for.

    Raises MdmError, also for another picture than that file was made from.
    """
    asked.check()
    recipe = None if like is None else like.recipe
    if like is None or recipe is None or recipe.image is None:
        return asked.given(config, stop_at)
    for name, digest, given in (
        ("image", recipe.image, asked.image),
        ("mask", recipe.mask, asked.mask),
    ):
        if digest is not None and given is None:
            raise MdmError(
                f"like: {like.path} was made from a picture with SHA-256 {digest[:12]}...; give it "
                f"again with --{name}."
            )
    assert asked.image is not None, "checked above"
    if recipe.level is not None:
        given = small_picture(
            config, stop_at, asked.image, resize=True, background=asked.background
        )
    else:
        margins = None if recipe.extend is None else Margins.of(recipe.extend)
        kept = {"strength": recipe.strength, "harmonize": recipe.harmonize, "extend": margins}
        missing = {k: v for k, v in kept.items() if getattr(asked, k) is None}
        if asked.mask is not None:
            missing.pop("extend", None)
        given = dataclasses.replace(asked, **missing).given(config, stop_at)
    if given is None:  # at strength 1, which was asked for
        return None
    for name, digest, found in (
        ("image", recipe.image, given.sha256),
        ("mask", recipe.mask, given.mask_sha256),
    ):
        if digest is not None and digest != found:
            raise MdmError(
                f"{name}: is another picture than {like.path} was made from (SHA-256 "
                f"{(found or 'none')[:12]}..., expected {digest[:12]}...); give that one."
            )
    return given


def asked_of(request: Any) -> PictureAsked:
    """The options of a request that speak of a given picture."""
    names = [field.name for field in dataclasses.fields(PictureAsked)]
    return PictureAsked(**{name: getattr(request, name) for name in names})


def unused(name: str, belongs_to: str, value: object) -> None:
    """Refuse an option without the one that it belongs to. Raises MdmError."""
    if value is not None:
        raise MdmError(f"{name}: belongs to --{belongs_to}; give that too, or leave it out.")
