"""Opening what --model names on the backend that --backend names; both commands that sample do it.

`--model` defaults to the embedded model that goes with the sampler, `--backend` to what fits the
machine and the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click

from mdm_apple.bundled_models import EMOJI, EMOJI_STUDENT
from mdm_apple.cli.model_options import FOLDER, default_backend, require_backend
from mdm_apple.cli.output import Output
from mdm_apple.errors import MdmError, require_installed
from mdm_apple.sampling.generate import Prompt, Runtime
from mdm_apple.sampling.inner_model import level_of_side
from mdm_apple.sampling.pictures import Bits
from mdm_apple.storage.model_folder import weights_sha256

BACKENDS = ("torch", "mlx", "coreml", "reference")
MLX_ONLY = ("quantize", "low_memory", "memory_limit")

model_option = click.option(
    "--model",
    type=FOLDER,
    metavar="DIR|BUNDLE",
    help="What to run; default: the embedded emoji model, with --sampler student its student.",
)


@dataclass(frozen=True)
class Opened:
    """A runtime, the SHA-256 of its weights ("" where none is recorded), and its backend."""

    runtime: Runtime
    sha256: str
    backend: str


def open_model(options: dict[str, Any], output: Output, prompts: Sequence[Prompt] = ()) -> Opened:
    """Open the model of a command's options; sets `model` and `precision` where left open.

    Args:
        prompts: all that will be asked for, where that is known (--low-memory, --quantize).
    """
    if options["model"] is None:
        options["model"] = EMOJI_STUDENT if options["sampler"] == "student" else EMOJI
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
        if options.get(name) and backend != "mlx":
            raise MdmError(f"{name.replace('_', '-')}: only --backend mlx has it, not {backend}.")
    if is_bundle:
        return _open_bundle(options, backend)
    require_backend(backend)
    opened = _open_mlx(options, prompts, output) if backend == "mlx" else _open_torch(options)
    return Opened(opened, weights_sha256(model) or "", backend)


def _open_bundle(options: dict[str, Any], backend: str) -> Opened:
    """By the executor, or by Core ML on the compute units that the manifest proposes."""
    require_installed("torch", "coremltools", "jsonschema")
    from mdm_apple.conversion.run.coreml import core_ml
    from mdm_apple.conversion.run.runtime import open_bundle_runtime

    precision, load = options["precision"], None
    if backend == "coreml":
        load = core_ml()
        if precision != "fp16":
            raise MdmError(f"dtype: Core ML runs packages as they are, in fp16, not {precision}.")
    runtime, digest = open_bundle_runtime(options["model"], precision, options["features"], load)
    return Opened(runtime, digest, backend)


def _open_torch(options: dict[str, Any]) -> Runtime:
    from mdm_apple.torch.load import open_runtime

    runtime = open_runtime(
        options["model"],
        precision=options["precision"],
        features=options["features"],
        encoder_folder=options["text_encoder"],
    )
    return cast(Runtime, runtime)


def _open_mlx(options: dict[str, Any], prompts: Sequence[Prompt], output: Output) -> Runtime:
    from mdm_apple.mlx.load import open_runtime
    from mdm_apple.mlx.memory import limit_memory
    from mdm_apple.mlx.quantize import quantize_runtime

    if options.get("memory_limit") is not None:
        limit_memory(options["memory_limit"])
    captions = [caption for p in prompts for caption in (p.text, p.negative)]
    runtime = open_runtime(
        options["model"],
        precision=options["precision"],
        features=options["features"],
        encoder_folder=options["text_encoder"],
        remember=captions if options.get("low_memory") else None,
    )
    bits = bits_of(options)
    if bits is not None:
        first = level_of_side(runtime.config, options["stop_at"])
        done, psnr = quantize_runtime(runtime, bits, prompts[0], first)
        output.say(
            f"{bits} bits: {done.layers} Linear layers, weights "
            f"{done.before / 1e6:.1f} MB before, {done.after / 1e6:.1f} MB now; "
            f"PSNR of predictions at least {psnr:.1f} dB."
        )
    return runtime


def bits_of(options: dict[str, Any]) -> Bits | None:
    """Of --quantize; a recipe holds the number, the command line its name."""
    known: dict[str, Bits] = {"8": 8, "4": 4}
    asked = options.get("quantize")
    return known[str(asked)] if asked else None
