"""`mdm palettize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdm_apple.cli.model_options import FILE, FOLDER
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.config.strict_json import to_json
from mdm_apple.errors import MdmError, require
from mdm_apple.storage.files import atomic_file

if TYPE_CHECKING:
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.compress.choose_bits import Chosen
    from mdm_apple.conversion.compress.recipe import Recipe
    from mdm_apple.conversion.compress.sensitivity import Sensitivity


@click.command(
    epilog="""\b
Examples:
  mdm palettize emoji.bundle --bits 6 --group 16 --out emoji-6.bundle
  mdm palettize emoji.bundle --variant balanced --model runs/emoji --out emoji-balanced.bundle
"""
)
@click.argument("bundle", type=FOLDER)
@click.option(
    "--bits",
    type=click.Choice(["8", "6", "4", "3", "2", "int8", "int4", "mixed"]),
    help="Palettes of 2^bits values, int8 per channel, int4 per block of 32; mixed: by what each "
    "weight is worth.",
)
@click.option(
    "--variant",
    type=click.Choice(["quality", "balanced", "compact"]),
    help="Mixed bits, as large as 6, 4 or 3 bits everywhere.",
)
@click.option("--recipe", type=FILE, metavar="F.json", help="Bits of every weight, as written.")
@click.option("--budget", type=click.FloatRange(0.001), metavar="MB", help="Of --bits mixed.")
@click.option(
    "--least-db", type=click.FloatRange(0, 120), metavar="DB", help="Expected SNR of --bits mixed."
)
@click.option(
    "--model", type=FOLDER, metavar="DIR", help="Mixed bits are measured on the model itself."
)
@click.option(
    "--sensitivity",
    type=FILE,
    metavar="F.json",
    help="Measurements: read where the file exists, else written to it.",
)
@click.option("--prompts", type=click.IntRange(1, 8), default=2, show_default=True)
@click.option("--save-recipe", type=FILE, metavar="F.json", help="Of mixed bits.")
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
def command(**options: Any) -> None:
    """Compress the weights of a bundle; those that cannot take the setting are named."""
    output = Output(options["as_json"], options["quiet"])
    _check(options)
    require("torch")
    require("jsonschema")
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.compress.palettize import (
        palettize,
        palettize_by_recipe,
        refuse_compressed,
    )
    from mdm_apple.conversion.compress.recipe import read_recipe
    from mdm_apple.conversion.compress.settings import Setting

    bundle, out, overwrite = Bundle.open(options["bundle"]), options["out"], options["overwrite"]
    refuse_existing(out, overwrite)
    how = options["processes"], options["max_package_mb"]
    expected: dict[str, Any] = {}
    if _is_mixed(options) or options["recipe"] is not None:
        if options["recipe"] is not None:
            recipe = read_recipe(options["recipe"])
        else:
            refuse_compressed(bundle)
            chosen = _chosen(bundle, options, output)
            recipe = chosen.recipe
            expected = {"expected": {"bytes": chosen.bytes, "snr": chosen.snr, "bits": chosen.bits}}
            output.say(
                f"expected: {chosen.bytes / 1e6:.2f} MB, {chosen.bits:.2f} bits a weight, "
                f"predictions at {chosen.snr:.1f} dB SNR"
            )
        _, report = palettize_by_recipe(bundle, out, recipe, overwrite, output.say, *how)
        _save(options["save_recipe"], recipe)
    else:
        setting = Setting.parse(options["bits"], options["group"])
        _, report = palettize(
            bundle,
            out,
            setting,
            options["protect_ends"],
            overwrite,
            output.say,
            *how,
        )
    kept = [w for w in report.weights if w.reason]
    for weight in kept:
        output.say(f"16 bits: {weight.package} {weight.name} ({weight.reason})")
    output.result(
        report.as_json() | {"bundle": str(out)} | expected,
        f"{out}\n"
        f"{report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, "
        f"{len(report.weights) - len(kept)} weights compressed, {len(kept)} at 16 bits, "
        f"{report.variant}",
    )


def _is_mixed(options: dict[str, Any]) -> bool:
    return options["bits"] == "mixed" or options["variant"] is not None


def _check(options: dict[str, Any]) -> None:
    """Which options go together. Raises MdmError."""
    if sum(options[name] is not None for name in ("bits", "variant", "recipe")) != 1:
        raise MdmError("give one of --bits, --variant and --recipe.")
    limits = sum(options[name] is not None for name in ("budget", "least_db"))
    if limits != (options["bits"] == "mixed"):
        raise MdmError("give one of --budget and --least-db with --bits mixed, and only there.")
    if _is_mixed(options):
        known = options["sensitivity"] is not None and options["sensitivity"].is_file()
        if options["model"] is None and not known:
            raise MdmError(
                "mixed bits are measured on the model: add --model DIR, the folder that the bundle "
                "was made of, or use a --recipe."
            )
        if options["save_recipe"] is not None:
            refuse_existing(options["save_recipe"], options["overwrite"])
        return
    for name in ("model", "sensitivity", "save_recipe"):
        if options[name] is not None:
            raise MdmError(f"{name.replace('_', '-')}: goes with --variant and --bits mixed only.")
    if options["recipe"] is not None and options["group"] is not None:
        raise MdmError("group: is part of the recipe; leave it out.")


def _chosen(bundle: Bundle, options: dict[str, Any], output: Output) -> Chosen:
    from mdm_apple.conversion.compress.choose_bits import (
        recipe_reaching,
        recipe_within,
        variant_recipe,
    )

    measured = _sensitivity(bundle, options, output)
    if options["variant"] is not None:
        return variant_recipe(measured, options["variant"])
    if options["budget"] is not None:
        size = options["budget"]
        return recipe_within(measured, int(size * 1e6), f"mixed-{size:g}mb")
    return recipe_reaching(measured, options["least_db"], f"mixed-{options['least_db']:g}db")


def _sensitivity(bundle: Bundle, options: dict[str, Any], output: Output) -> Sensitivity:
    """From the file that was named, or measured on the model and then written there."""
    from mdm_apple.conversion.compress.sensitivity import measure_sensitivity, read_sensitivity
    from mdm_apple.conversion.source.model import load_source

    path: Path | None = options["sensitivity"]
    group, protect = options["group"], options["protect_ends"]
    if path is not None and path.exists():
        found = read_sensitivity(path, bundle)
        if (found.group, found.protect_ends) != (group, protect):
            raise MdmError(
                f"{path}: was measured with other --group or --protect-ends; name another file."
            )
        return found
    text = bundle.manifest.text
    source = load_source(options["model"], "yes" if text and text.encoder else "no")
    measured = measure_sensitivity(
        bundle, source, group, protect, options["prompts"], output.say, options["processes"]
    )
    if path is not None:
        with atomic_file(path) as file:
            file.write(to_json(measured).encode())
    return measured


def _save(path: Path | None, recipe: Recipe) -> None:
    if path is not None:
        with atomic_file(path) as file:
            file.write(to_json(recipe).encode())
