"""`mdm sample`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
from tqdm import tqdm

from mdm_apple import __version__
from mdm_apple.cli.model_options import FILE, FOLDER, Gigabytes, default_backend, require_backend
from mdm_apple.cli.output import Output, output_options, overwrite_option, refuse_existing
from mdm_apple.errors import MdmError, require_installed
from mdm_apple.files import new_files
from mdm_apple.gallery import (
    Bits,
    Pixels,
    Recipe,
    as_png,
    read_recipe,
    tile,
    tile_steps,
    to_pixels,
)
from mdm_apple.generate import Preview, Prompt, Runtime, generate
from mdm_apple.levels import level_of_side
from mdm_apple.sampling import SamplerConfig

BACKENDS = ("torch", "mlx", "coreml", "reference")
MLX_ONLY = ("quantize", "low_memory", "memory_limit")
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
@click.option("--model", type=FOLDER, required=True, metavar="DIR|BUNDLE", help="What to run.")
@click.option("--prompt", "prompts", multiple=True, help="Repeat for several.")
@click.option(
    "--seed", "seeds", type=click.IntRange(0, 2**32 - 1), multiple=True, help="Default 0."
)
@click.option("--negative", default="", help="What the picture should not be.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True)
@click.option("--full-table", is_flag=True, help="Every timestep of the table instead of --steps.")
@click.option(
    "--sampler", type=click.Choice(["ddpm", "ddim", "dpmpp"]), default="ddim", show_default=True
)
@click.option("--eta", type=click.FloatRange(0, 1), default=0.0, help="Noise of ddim.")
@click.option("--guidance", type=float, default=1.0, show_default=True, help="1: none.")
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
    prompts, sampler, stop_at = _request(options)
    out: Path = options["out"]
    single = len(prompts) == 1 and out.suffix.lower() == ".png"
    refuse_existing(out, options["overwrite"])
    if single and options["previews"]:
        refuse_existing(_strip_of(out), options["overwrite"])
    runtime, model_hash, backend = _open(options, prompts, output)
    level_of_side(runtime.config, stop_at)
    made = _make(runtime, prompts, sampler, stop_at, options, output)
    memory = _memory_used(backend, options["memory_limit"], output)
    folder = out.parent if single else out
    files: list[str] = []
    with new_files(folder) as put:

        def save(path: Path, pixels: Pixels, recipe: Recipe | None = None) -> None:
            put(path.name, as_png(pixels, recipe))
            files.append(str(path))

        for k, picture in enumerate(made):
            path = out if single else out / f"{k:04d}_{_slug(picture.prompt)}.png"
            recipe = _recipe(picture.prompt, sampler, stop_at, model_hash, backend, options)
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


def _request(options: dict[str, Any]) -> tuple[list[Prompt], SamplerConfig, int | None]:
    """Prompts with seeds, sampler and stop from the options, or from the picture of --like."""
    if options["like"] is not None:
        if options["prompts"] or options["seeds"]:
            raise MdmError(
                "like: brings its own prompt and seed, so leave out --prompt and --seed."
            )
        recipe = read_recipe(options["like"])
        for option, field in FROM_RECIPE.items():
            options[option] = getattr(recipe, field)
        options["full_table"] = recipe.steps is None
        options["prompts"], options["seeds"] = (recipe.prompt,), (recipe.seed,)
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


def _open(
    options: dict[str, Any], prompts: Sequence[Prompt], output: Output
) -> tuple[Runtime, str, str]:
    """The runtime, the hash of its weights, and the backend's name."""
    model: Path = options["model"]
    is_bundle = (model / "manifest.json").is_file()
    backend = options["backend"] or ("reference" if is_bundle else default_backend())
    if options["precision"] is None:
        options["precision"] = "fp16" if is_bundle else "fp32"
    if is_bundle != (backend in ("coreml", "reference")):
        kind = "a bundle" if is_bundle else "a model folder"
        fitting = "reference or coreml" if is_bundle else "torch or mlx"
        raise MdmError(f"backend: {model} is {kind}, which runs on {fitting}, not {backend}.")
    for name in MLX_ONLY:
        if options[name] and backend != "mlx":
            raise MdmError(f"{name.replace('_', '-')}: only --backend mlx has it, not {backend}.")
    if backend == "reference":
        require_installed("torch", "coremltools", "jsonschema")
        from conversion.runtime import open_bundle_runtime

        runtime, digest = open_bundle_runtime(model, options["precision"], options["features"])
        return runtime, digest, backend
    if backend == "coreml":
        raise MdmError("backend: coreml is not part of this version; use reference.")
    require_backend(backend)
    from mdm_apple.atomic_folder import recorded_hashes

    runtime = _open_mlx(options, prompts, output) if backend == "mlx" else _open_torch(options)
    hashes = recorded_hashes(model)
    weights = hashes.get("ema.safetensors") or hashes.get("model.safetensors")
    return runtime, weights.sha256 if weights else "", backend


def _open_torch(options: dict[str, Any]) -> Runtime:
    from mdm_apple.torch.open import open_runtime

    runtime = open_runtime(
        options["model"],
        precision=options["precision"],
        features=options["features"],
        encoder_folder=options["text_encoder"],
    )
    return cast(Runtime, runtime)


def _open_mlx(options: dict[str, Any], prompts: Sequence[Prompt], output: Output) -> Runtime:
    from mdm_apple.mlx.memory import limit_memory
    from mdm_apple.mlx.open import open_runtime
    from mdm_apple.mlx.quantize import quantize_runtime

    if options["memory_limit"] is not None:
        limit_memory(options["memory_limit"])
    runtime = open_runtime(
        options["model"],
        precision=options["precision"],
        features=options["features"],
        encoder_folder=options["text_encoder"],
        remember=[c for p in prompts for c in (p.text, p.negative)]
        if options["low_memory"]
        else None,
    )
    first = level_of_side(runtime.config, options["stop_at"])
    bits = _bits(options)
    if bits is not None:
        done, psnr = quantize_runtime(runtime, bits, prompts[0], first)
        output.say(
            f"{bits} bits: {done.layers} Linear layers, weights "
            f"{done.before / 1e6:.1f} MB before, {done.after / 1e6:.1f} MB now; "
            f"PSNR of predictions at least {psnr:.1f} dB."
        )
    return runtime


def _bits(options: dict[str, Any]) -> Bits | None:
    """A recipe holds the number, the command line its name."""
    return {"8": 8, "4": 4}[str(options["quantize"])] if options["quantize"] else None


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
    model_hash: str,
    backend: str,
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
        model=model_hash,
        backend=backend,
        precision=options["precision"],
        version=__version__,
        quantize=_bits(options),
    )


def _slug(prompt: Prompt) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in prompt.text.lower())
    return f"{'-'.join(filter(None, kept.split('-')))[:40] or 'empty'}_{prompt.seed}"
