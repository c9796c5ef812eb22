"""`mdm palettize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from mdm_apple import api
from mdm_apple.bundled_models import find_bundle, find_folder
from mdm_apple.cli.model_options import FILE, FOLDER, Number
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
    refuse_existing_bundle,
)
from mdm_apple.config.strict_json import to_json
from mdm_apple.config.types import Variant, WeightBits
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import atomic_file


@dataclass(frozen=True)
class PalettizeRequest:
    """The options of `mdm palettize`. budget: megabytes. least_db: decibels."""

    bundle: str
    bits: WeightBits | Literal["mixed"] | None
    variant: Variant | None
    recipe: Path | None
    budget: float | None
    least_db: float | None
    model: str | None
    sensitivity: Path | None
    prompts: int
    save_recipe: Path | None
    group: int | None
    protect_ends: bool
    processes: int | None
    max_package_mb: float | None
    out: Path
    overwrite: bool

    @property
    def mixed(self) -> bool:
        """Whether each weight has its own number of bits, which must be chosen."""
        return self.bits == "mixed" or self.variant is not None


@click.command(
    epilog="""\b
Examples:
  mdm palettize emoji.bundle --bits 6 --group 16 --out emoji-6.bundle
  mdm palettize emoji.bundle --variant balanced --model box:emoji --out emoji-balanced.bundle
"""
)
@click.argument("bundle")
@click.option(
    "--bits",
    type=click.Choice([*get_args(WeightBits), "mixed"]),
    help="A number: palettes of 2^bits values. int8: integers with a scale per channel. int4: "
    "integers with a scale per block of 32. mixed: more bits for weights that matter more.",
)
@click.option(
    "--variant",
    type=click.Choice(get_args(Variant)),
    help="Mixed bits, with the size of 6, 4 or 3 bits everywhere.",
)
@click.option(
    "--recipe", type=FILE, metavar="F.json", help="Give each weight the bits in this file."
)
@click.option(
    "--budget", type=Number(0.001), metavar="MB", help="Largest size of a --bits mixed bundle."
)
@click.option(
    "--least-db",
    type=Number(0, 120),
    metavar="DB",
    help="Lowest signal-to-noise ratio to expect from --bits mixed.",
)
@click.option(
    "--model", metavar="NAME", help="Model folder that the bundle was made from; for mixed bits."
)
@click.option(
    "--sensitivity",
    type=FILE,
    metavar="F.json",
    help="File of measurements: read if it exists, otherwise written.",
)
@click.option(
    "--prompts",
    type=click.IntRange(1, 8),
    default=2,
    show_default=True,
    help="Prompts to measure mixed bits on.",
)
@click.option("--save-recipe", type=FILE, metavar="F.json", help="Write the mixed bits to a file.")
@click.option(
    "--group",
    type=click.IntRange(1),
    metavar="N",
    help="Output channels that share a palette. Default: the whole weight.",
)
@click.option(
    "--protect-ends/--no-protect-ends",
    default=True,
    show_default=True,
    help="Leave first and last convolutions at 16 bits.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Default: one per processor, as far as there is work.",
)
@click.option(
    "--max-package-mb",
    type=Number(0.001),
    help="Split packages that are still larger. Default: leave them whole.",
)
@click.option("--out", type=FOLDER, required=True, metavar="BUNDLE2", help="Bundle to make.")
@overwrite_option
@output_options
@filling(PalettizeRequest)
def command(request: PalettizeRequest, output: Output) -> None:
    """Compress the weights of a bundle, and name those that keep their 16 bits."""
    _check(request)
    made = api.palettize(
        request.bundle,
        request.out,
        bits=None if request.bits == "mixed" else request.bits,
        group=request.group,
        variant=request.variant,
        budget=request.budget,
        least_db=request.least_db,
        model=request.model,
        sensitivity=request.sensitivity,
        prompts=request.prompts,
        recipe=request.recipe,
        protect_ends=request.protect_ends,
        processes=request.processes,
        max_package_mb=request.max_package_mb,
        overwrite=request.overwrite,
        say=output.say,
    )
    report, chosen = made.report, made.chosen
    if chosen is not None and request.save_recipe is not None:
        with atomic_file(request.save_recipe) as file:
            file.write(to_json(chosen.recipe).encode())
    kept = [w for w in report.weights if w.reason]
    for weight in kept:
        output.say(f"16 bits: {weight.package} {weight.name} ({weight.reason})")
    expected: dict[str, Any] = {}
    if chosen is not None:
        expected = {"expected": {"bytes": chosen.bytes, "snr": chosen.snr, "bits": chosen.bits}}
    output.result(
        report.as_json() | {"bundle": str(request.out)} | expected,
        f"{request.out}\n"
        f"{report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, "
        f"{len(report.weights) - len(kept)} weights compressed, {len(kept)} at 16 bits, "
        f"{report.variant}",
    )


def _check(request: PalettizeRequest) -> None:
    """Refuse options that do not go together, and files that are absent or in the way."""
    if [request.bits, request.variant, request.recipe].count(None) != 2:
        raise MdmError("give one of --bits, --variant and --recipe.")
    limits = 2 - [request.budget, request.least_db].count(None)
    if limits != (request.bits == "mixed"):
        raise MdmError("give one of --budget and --least-db with --bits mixed, and not otherwise.")
    if request.mixed:
        _check_mixed(request)
    else:
        mixed_only = {
            "model": request.model,
            "sensitivity": request.sensitivity,
            "save-recipe": request.save_recipe,
        }
        for name, value in mixed_only.items():
            if value is not None:
                raise MdmError(f"{name}: goes with --variant and --bits mixed only.")
    if request.recipe is not None and request.group is not None:
        raise MdmError("group: is part of the recipe; leave it out.")
    if request.recipe is not None and not request.recipe.is_file():
        raise MdmError(f"{request.recipe}: no such file; give a file written by --save-recipe.")
    if request.bits in ("int8", "int4") and request.group is not None:
        raise MdmError(f"group: goes with palettes only, not with {request.bits}; leave it out.")
    find_bundle(request.bundle)
    refuse_existing_bundle(request.out, request.overwrite)


def _check_mixed(request: PalettizeRequest) -> None:
    known = request.sensitivity is not None and request.sensitivity.is_file()
    if request.model is None and not known:
        raise MdmError(
            "mixed bits are measured on the model: add --model NAME, the model folder that the "
            "bundle was made from, or use a --recipe."
        )
    if request.model is not None:
        find_folder(request.model)
    if request.save_recipe is not None:
        refuse_existing(request.save_recipe, request.overwrite)
