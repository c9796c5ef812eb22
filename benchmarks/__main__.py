"""`python -m benchmarks`: the short set, printed and written as JSON.

MDM_REFERENCE names a checkout of apple/ml-mdm to measure beside; without one the comparison is a
plain eager reference of our own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.blas import lend_blas
from benchmarks.execute import execute, opening
from benchmarks.harness import Pair, machine
from benchmarks.mlx_networks import mlx_forward, mlx_narrow, mlx_training
from benchmarks.networks import eager_forward, forward_pass, guided_step, training_step
from benchmarks.palettes import palettes
from benchmarks.swift_core import swift_normals, swift_steps, swift_tokens

SUITES: dict[str, Callable[[int], Pair]] = {
    "guided": lambda n: guided_step("fp32", n),
    "guided-bf16": lambda n: guided_step("bf16", n),
    "training": training_step,
    "forward64": lambda n: forward_pass("mdm64", n),
    "eager": eager_forward,
    "mlx-forward": mlx_forward,
    "mlx-narrow": mlx_narrow,
    "mlx-training": mlx_training,
    "execute": execute("fp32"),
    "execute-fp16": execute("fp16"),
    "execute-open": opening,
    "palettize4": palettes(4),
    "palettize6": palettes(6),
    "palettize8": palettes(8),
    "palettize4-student": palettes(4, "student"),
    "palettize6-student": palettes(6, "student"),
    "palettize8-student": palettes(8, "student"),
    "palettize4-trained": palettes(4, "trained"),
    "palettize6-trained": palettes(6, "trained"),
    "palettize8-trained": palettes(8, "trained"),
    "swift-steps": swift_steps,
    "swift-normals": swift_normals,
    "swift-tokens": swift_tokens,
}
# run when they are named: they need the mlx extra or Swift, or make a package of 0.9 GB first
ALONE = (
    "mlx-forward",
    "mlx-narrow",
    "mlx-training",
    "execute",
    "execute-fp16",
    "execute-open",
    "swift-steps",
    "swift-normals",
    "swift-tokens",
)


@click.command()
@click.argument("suites", nargs=-1, type=click.Choice(list(SUITES)))
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON to write.")
def main(suites: tuple[str, ...], repetitions: int, out: Path | None) -> None:
    """Measure the given suites, by default those that need nothing more than PyTorch."""
    lend_blas()
    pairs: list[Pair] = []
    chosen = suites or tuple(name for name in SUITES if name not in ALONE)
    for name in chosen:
        pairs.append(SUITES[name](repetitions))
        click.echo(pairs[-1].line())
    if out is not None:
        command = f"python -m benchmarks {' '.join(chosen)} --repetitions {repetitions}"
        result = {
            "machine": machine(),
            "command": command,
            "pairs": [pair.as_json() for pair in pairs],
        }
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
