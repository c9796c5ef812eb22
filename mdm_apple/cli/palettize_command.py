"""`mdm palettize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from mdm_apple import api
from mdm_apple.bundled_models import find_model
from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.output import (
    Output,
    filling,
    output_options,
    overwrite_option,
    refuse_existing,
)
from mdm_apple.config.strict_json import to_json
from mdm_apple.config.types import Variant, WeightBits
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import atomic_file

if TYPE_CHECKING:
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.compress.choose_bits import Chosen
    from mdm_apple.conversion.compress.palettize import PalettizeReport
    from mdm_apple.conversion.compress.sensitivity import Sensitivity


@dataclass(frozen=True)
class PalettizeRequest:
    """The options of `mdm palettize`."""

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
    def is_mixed(self) -> bool:
        """Whether bits are chosen by measurements."""
        return self.bits == "mixed" or self.variant is not None

    def check(self) -> None:
        """Which options go together. Raises MdmError."""
        if [self.bits, self.variant, self.recipe].count(None) != 2:
            raise MdmError("give one of --bits, --variant and --recipe.")
        limits = 2 - [self.budget, self.least_db].count(None)
        if limits != (self.bits == "mixed"):
            raise MdmError("give one of --budget and --least-db with --bits mixed, and only there.")
        if self.is_mixed:
            self._check_mixed()
            return
        for name, given in (
            ("model", self.model),
            ("sensitivity", self.sensitivity),
            ("save-recipe", self.save_recipe),
        ):
            if given is not None:
                raise MdmError(f"{name}: goes with --variant and --bits mixed only.")
        if self.recipe is not None and self.group is not None:
            raise MdmError("group: is part of the recipe; leave it out.")
        if self.recipe is not None and not self.recipe.is_file():
            raise MdmError(f"{self.recipe}: no such file.")

    def _check_mixed(self) -> None:
        known = self.sensitivity is not None and self.sensitivity.is_file()
        if self.model is None and not known:
            raise MdmError(
                "mixed bits are measured on the model: add --model NAME, the model that the bundle "
                "came from, or use a --recipe."
            )
        if self.model is not None:
            find_model(self.model)
        if self.save_recipe is not None:
            refuse_existing(self.save_recipe, self.overwrite)


@click.command(
    epilog="""\b
Examples:
  mdm palettize emoji.bundle --bits 6 --group 16 --out emoji-6.bundle
  mdm palettize emoji.bundle --variant balanced --model runs/emoji --out emoji-balanced.bundle
"""
)
@click.argument("bundle")
@click.option(
    "--bits",
    type=click.Choice([*get_args(WeightBits), "mixed"]),
    help="Palettes of 2^bits values, int8 per channel, int4 per block of 32; mixed: more for the "
    "weights that matter more.",
)
@click.option(
    "--variant",
    type=click.Choice(get_args(Variant)),
    help="Mixed bits, as large as 6, 4 or 3 bits everywhere.",
)
@click.option("--recipe", type=FILE, metavar="F.json", help="File with the bits of every weight.")
@click.option("--budget", type=click.FloatRange(0.001), metavar="MB", help="Size for --bits mixed.")
@click.option(
    "--least-db", type=click.FloatRange(0, 120), metavar="DB", help="Expected SNR for --bits mixed."
)
@click.option(
    "--model",
    metavar="NAME",
    help="Model that the bundle came from; mixed bits are measured on it.",
)
@click.option(
    "--sensitivity",
    type=FILE,
    metavar="F.json",
    help="Measurements: read where the file exists, else written to it.",
)
@click.option("--prompts", type=click.IntRange(1, 8), default=2, show_default=True)
@click.option("--save-recipe", type=FILE, metavar="F.json", help="Save the bits chosen.")
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
    help="Default: as many as there are processors and work for.",
)
@click.option(
    "--max-package-mb",
    type=click.FloatRange(0.001),
    help="Packages that are larger even now are split. Default: they stay as they are.",
)
@click.option("--out", type=FOLDER, required=True, metavar="BUNDLE2")
@overwrite_option
@output_options
@filling(PalettizeRequest)
def command(request: PalettizeRequest, output: Output) -> None:
    """Compress the weights of a bundle; names those that cannot take the setting."""
    request.check()
    refuse_existing(request.out, request.overwrite)
    bundle = api.open_bundle(request.bundle)
    expected: dict[str, Any] = {}
    if request.is_mixed:
        chosen = _chosen(bundle, request, output)
        expected = {"expected": {"bytes": chosen.bytes, "snr": chosen.snr, "bits": chosen.bits}}
        report = _by_recipe(bundle, request, output, chosen)
    elif request.recipe is not None:
        report = _by_recipe(bundle, request, output)
    else:
        report = _uniform(bundle, request, output)
    kept = [w for w in report.weights if w.reason]
    for weight in kept:
        output.say(f"16 bits: {weight.package} {weight.name} ({weight.reason})")
    output.result(
        report.as_json() | {"bundle": str(request.out)} | expected,
        f"{request.out}\n"
        f"{report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, "
        f"{len(report.weights) - len(kept)} weights compressed, {len(kept)} at 16 bits, "
        f"{report.variant}",
    )


def _uniform(bundle: Bundle, request: PalettizeRequest, output: Output) -> PalettizeReport:
    """The same bits for all weights."""
    from mdm_apple.conversion.compress.palettize import palettize
    from mdm_apple.conversion.compress.settings import Setting

    assert request.bits is not None, "checked before"
    setting = Setting.parse(request.bits, request.group)
    _, report = palettize(
        bundle,
        request.out,
        setting,
        request.protect_ends,
        request.overwrite,
        output.say,
        request.processes,
        request.max_package_mb,
    )
    return report


def _by_recipe(
    bundle: Bundle, request: PalettizeRequest, output: Output, chosen: Chosen | None = None
) -> PalettizeReport:
    """Bits of each weight from a file, or as they were chosen."""
    from mdm_apple.conversion.compress.palettize import palettize_by_recipe
    from mdm_apple.conversion.compress.recipe import read_recipe

    if chosen is not None:
        recipe = chosen.recipe
        output.say(
            f"expected: {chosen.bytes / 1e6:.2f} MB, {chosen.bits:.2f} bits a weight, "
            f"predictions at {chosen.snr:.1f} dB SNR"
        )
    else:
        assert request.recipe is not None, "checked before"
        recipe = read_recipe(request.recipe)
    _, report = palettize_by_recipe(
        bundle,
        request.out,
        recipe,
        request.overwrite,
        output.say,
        request.processes,
        request.max_package_mb,
    )
    if request.save_recipe is not None:
        with atomic_file(request.save_recipe) as file:
            file.write(to_json(recipe).encode())
    return report


def _chosen(bundle: Bundle, request: PalettizeRequest, output: Output) -> Chosen:
    from mdm_apple.conversion.compress.choose_bits import (
        recipe_reaching,
        recipe_within,
        variant_recipe,
    )
    from mdm_apple.conversion.compress.palettize import refuse_compressed

    refuse_compressed(bundle)
    measured = _sensitivity(bundle, request, output)
    if request.variant is not None:
        return variant_recipe(measured, request.variant)
    if request.budget is not None:
        size = request.budget
        return recipe_within(measured, int(size * 1e6), f"mixed-{size:g}mb")
    assert request.least_db is not None, "checked before"
    return recipe_reaching(measured, request.least_db, f"mixed-{request.least_db:g}db")


def _sensitivity(bundle: Bundle, request: PalettizeRequest, output: Output) -> Sensitivity:
    """From the file that was named, or measured on the model and then written there."""
    from mdm_apple.conversion.compress.sensitivity import measure_on_model, read_sensitivity

    path, group, protect = request.sensitivity, request.group, request.protect_ends
    if path is not None and path.exists():
        found = read_sensitivity(path, bundle)
        if (found.group, found.protect_ends) != (group, protect):
            raise MdmError(
                f"{path}: was measured with other --group or --protect-ends; name another file."
            )
        return found
    assert request.model is not None, "checked before"
    folder = find_model(request.model).path
    measured = measure_on_model(
        bundle, folder, group, protect, request.prompts, output.say, request.processes
    )
    if path is not None:
        with atomic_file(path) as file:
            file.write(to_json(measured).encode())
    return measured
