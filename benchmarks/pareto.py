"""`python -m benchmarks.pareto`: size against picture quality, with every setting in one plot.

It converts a model folder and compresses it in every way. Each bundle makes the same guided
pictures through the executor, and its quality is their PSNR against the fp16 bundle's pictures.
Results go to a JSON file; the plot is drawn from that file alone (`--plot-only`).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import machine
from mdm_apple.bundled_models import EMOJI
from mdm_apple.config.strict_json import plain_values, to_json
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.manifest import package_bytes
from mdm_apple.conversion.compress.choose_bits import VARIANTS, variant_recipe
from mdm_apple.conversion.compress.palettize import palettize, palettize_by_recipe
from mdm_apple.conversion.compress.sensitivity import (
    Sensitivity,
    measure_sensitivity,
    read_sensitivity,
)
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions, convert
from mdm_apple.conversion.psnr import picture_psnr
from mdm_apple.conversion.run.runtime import BundleRuntime
from mdm_apple.conversion.source.model import load_source
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.model_folder import weights_sha256

HERE = Path(__file__).parent
RESULTS = HERE / "pareto_emoji.json"
PLOT = HERE.parent / "docs" / "pareto.png"

PROMPTS = ("pizza", "cat face", "red heart", "sun behind cloud")
SAMPLER = SamplerConfig("dpmpp", 15, guidance_scale=1.5)
UNIFORM = ("8", "6", "4", "3", "2")
LINEAR = ("int8",)

Pictures = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Point:
    """One bundle. bits: stored per compressible weight. psnr: of the largest pictures, in dB.

    worst: PSNR of the worst prompt. kind: fp16, uniform, linear or mixed.
    """

    name: str
    kind: str
    group: int | None
    bytes: int
    bits: float
    psnr: float
    worst: float


@click.command()
@click.option("--model", type=click.Path(path_type=Path, file_okay=False), default=EMOJI)
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), default=PLOT)
@click.option(
    "--group",
    "groups",
    type=click.IntRange(1),
    multiple=True,
    help="Also measure palettes for groups of this many output channels.",
)
@click.option("--plot-only", is_flag=True, help="Draw existing results.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Keep bundles here.")
def main(
    model: Path,
    results: Path,
    plot: Path,
    groups: tuple[int, ...],
    plot_only: bool,
    work: Path | None,
) -> None:
    """Measure and plot the compressed forms of a model."""
    if not plot_only:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(model, (None, *groups), work or Path(scratch), click.echo)
        results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draw(json.loads(results.read_text(encoding="utf-8")), plot)


def measure(
    model: Path, groups: Sequence[int | None], work: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """All points of one model. Bundles and measurements already in `work` are reused."""
    work.mkdir(parents=True, exist_ok=True)
    source = load_source(model)
    fp16 = _bundle(
        work / "fp16.bundle",
        lambda out: convert(source, out, ConvertOptions("nested", compute="ane")),
    )
    reference: Pictures = []
    kept_points = work / "points.json"
    known = json.loads(kept_points.read_text("utf-8")) if kept_points.exists() else {}
    total = package_bytes(fp16.manifest.packages)
    points = [Point("fp16", "fp16", None, total, 16.0, math.inf, math.inf)]
    recipes: dict[str, Any] = {}

    def add(kind: str, name: str, group: int | None, out: Path, sens: Sensitivity) -> None:
        if name in known:
            points.append(Point(**known[name]))
            return
        if not reference:
            reference.extend(pictures(fp16))
        bundle = Bundle.open(out)
        made = pictures(bundle)
        size = package_bytes(bundle.manifest.packages)
        each = [picture_psnr(a, b) for a, b in zip(reference, made, strict=True)]
        bits = 8 * (size - sens.fixed_bytes) / sens.elements
        together = picture_psnr(np.concatenate(reference), np.concatenate(made))
        points.append(Point(name, kind, group, size, bits, together, min(each)))
        known[name] = asdict(points[-1])
        kept_points.write_text(json.dumps(known), "utf-8")
        say(f"{points[-1]}")

    for group in groups:
        tag = f"-group{group}" if group else ""
        kept = work / f"sensitivity{tag}.json"
        if not kept.exists():
            kept.write_text(to_json(measure_sensitivity(fp16, source, group, say=say)), "utf-8")
        sens = read_sensitivity(kept, fp16)
        for bits in (*UNIFORM, *(LINEAR if group is None else ())):
            out = work / f"{bits}{tag}.bundle"
            _bundle(out, lambda o, b=bits, g=group: palettize(fp16, o, Setting.parse(b, g))[0])
            add("linear" if bits in LINEAR else "uniform", f"{bits}{tag}", group, out, sens)
        for variant in VARIANTS:
            chosen = variant_recipe(sens, variant)
            out = work / f"{variant}{tag}.bundle"
            _bundle(out, lambda o, c=chosen: palettize_by_recipe(fp16, o, c.recipe)[0])
            add("mixed", f"{variant}{tag}", group, out, sens)
            recipes[f"{variant}{tag}"] = {"snr": chosen.snr, "bits": asdict(chosen.recipe)["bits"]}
    return plain_values(
        {
            "machine": machine(),
            "command": "python -m benchmarks.pareto",
            "model": {"sha256": weights_sha256(model)},
            "protocol": {
                "prompts": PROMPTS,
                "sampler": asdict(SAMPLER),
                "execution": "reference executor, fp16 storage",
                "psnr": "of the largest pictures against those of the fp16 bundle, peak 2",
            },
            "points": [asdict(p) for p in points],
            "recipes": recipes,
        }
    )


def _bundle(out: Path, make: Callable[[Path], Bundle]) -> Bundle:
    return Bundle.open(out) if out.exists() else make(out)


def pictures(bundle: Bundle) -> Pictures:
    """The largest picture of each prompt, (1, 3, side, side) in [-1, 1]; seed k for prompt k."""
    runtime = BundleRuntime(bundle)
    asked = [Prompt(text, seed) for seed, text in enumerate(PROMPTS)]
    final = finish(generate(runtime, asked, SAMPLER))[0]
    return [final[k : k + 1] for k in range(len(asked))]


INK, GREY, LINE = "#1d1d1f", "#8e8e93", "#d2d2d7"
COLOURS = {"uniform": "#8e8e93", "linear": "#c7b299", "mixed": "#0071e3"}


def draw(results: dict[str, Any], path: Path) -> None:
    """Size against PSNR: uniform settings as lines, mixed ones above them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=150)
    points = [p for p in results["points"] if p["kind"] != "fp16"]
    for kind, group in dict.fromkeys((p["kind"], p["group"]) for p in points):
        line = sorted(
            (p for p in points if (p["kind"], p["group"]) == (kind, group)),
            key=lambda p: p["bytes"],
        )
        x, y = [p["bytes"] / 1e6 for p in line], [p["psnr"] for p in line]
        style: dict[str, Any] = {"color": COLOURS[kind], "linewidth": 1.4, "markersize": 6}
        style |= (
            {"marker": "o", "linestyle": "-"}
            if group is None
            else {"marker": "s", "linestyle": "--"}
        )
        if kind == "linear":
            style["linestyle"] = "none"
        what = {
            "uniform": "the same bits everywhere",
            "linear": "whole numbers",
            "mixed": "mixed bits",
        }
        how = (
            ""
            if kind == "linear"
            else f", a palette per {f'{group} channels' if group else 'weight'}"
        )
        axes.plot(x, y, label=what[kind] + how, **style)
        for point, a, b in zip(line, x, y, strict=True):
            name = point["name"].removesuffix(f"-group{group}")
            above = kind == "mixed"
            axes.annotate(
                name if kind != "uniform" else f"{name} bits",
                (a, b),
                fontsize=7,
                color=INK,
                xytext=(0, 7 if above else -12),
                textcoords="offset points",
                ha="center",
            )
    full = next(p for p in results["points"] if p["kind"] == "fp16")["bytes"] / 1e6
    axes.set_xlabel(f"MB of all packages (fp16: {full:.1f})", color=INK)
    axes.set_ylabel("PSNR of the pictures from fp16's, dB", color=INK)
    axes.grid(color=LINE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
