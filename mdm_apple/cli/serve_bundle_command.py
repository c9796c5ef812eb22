"""`mdm serve-bundle`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.errors import require_installed


@click.command(
    epilog="""\b
Examples:
  mdm serve-bundle emoji.bundle
  mdm-generate emoji.bundle --prompt "red heart" --server mdm --out heart.png
"""
)
@click.argument("bundle", type=FOLDER)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
def command(bundle: Path, precision: str) -> None:
    """Run the packages of a bundle for another program, over stdin and stdout.

    The protocol is in docs/serve_bundle.md; mdm-generate speaks it where there is no Core ML.
    """
    require_installed("torch", "coremltools", "jsonschema")
    # Nothing but frames may reach the client: what a library prints goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from conversion.bundle import Bundle
    from conversion.serve import BundleServer

    server = BundleServer(Bundle.open(bundle), "fp32" if precision == "fp32" else "fp16")
    try:
        server.serve(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the client is gone
        return
