"""`mdm serve-bundle`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, output_options
from mdm_apple.errors import require_installed


@click.command(
    epilog="""\b
Examples:
  mdm serve-bundle emoji.bundle --precision fp32
  mdm serve-bundle emoji.bundle --json
"""
)
@click.argument("bundle", type=FOLDER)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
@output_options
def command(bundle: Path, precision: str, as_json: bool, quiet: bool) -> None:
    """Run the packages of a bundle for another program, over stdin and stdout.

    The protocol is in docs/serve_bundle.md; mdm-generate speaks it where there is no Core ML.
    --json says what would be served, and stops.
    """
    require_installed("torch", "coremltools", "jsonschema")
    if as_json:
        _describe(bundle, Output(as_json, quiet))
        return
    # Nothing but frames may reach the client: what a library prints goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.run.serve import BundleServer

    server = BundleServer(Bundle.open(bundle), "fp32" if precision == "fp32" else "fp16")
    try:
        server.serve(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the client is gone
        return


def _describe(folder: Path, output: Output) -> None:
    from mdm_apple.conversion.bundle.folder import Bundle
    from mdm_apple.conversion.run.serve import VERSION

    manifest = Bundle.open(folder).manifest
    names = [package.name for package in manifest.packages]
    output.result({"protocol": VERSION, "digest": manifest.digest, "packages": names}, "")
