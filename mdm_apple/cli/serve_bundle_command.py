"""`mdm serve-bundle`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import get_args

import click

from mdm_apple import api
from mdm_apple.bundled_models import find_bundle, require_format
from mdm_apple.cli.output import Output, filling, output_options
from mdm_apple.config.types import ExecutorPrecision


@dataclass(frozen=True)
class ServeBundleRequest:
    """The options of `mdm serve-bundle`."""

    bundle: str
    precision: ExecutorPrecision


@click.command(
    epilog="""\b
Examples:
  mdm serve-bundle emoji.bundle --precision fp32
  mdm serve-bundle emoji.bundle --json
"""
)
@click.argument("bundle")
@click.option(
    "--precision",
    type=click.Choice(get_args(ExecutorPrecision)),
    default="fp16",
    show_default=True,
    help="Number type that the executor computes in.",
)
@output_options
@filling(ServeBundleRequest)
def command(request: ServeBundleRequest, output: Output) -> None:
    """Run the packages of a bundle for another program, over stdin and stdout.

    The protocol is in docs/serve_bundle.md; mdm-generate speaks it where there is no Core ML.
    --json prints what would be served, then stops.
    """
    require_format(find_bundle(request.bundle).format)
    if output.as_json:
        _describe(request.bundle, output)
    else:
        _serve(request.bundle, request.precision)


def _serve(bundle: str, precision: ExecutorPrecision) -> None:
    # Nothing but frames may reach the client: what a library prints goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    opened = api.open_bundle(bundle)
    from mdm_apple.conversion.run.serve import BundleServer

    server = BundleServer(opened, precision)
    try:
        server.serve(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the client is gone
        return


def _describe(bundle: str, output: Output) -> None:
    manifest = api.open_bundle(bundle).manifest
    from mdm_apple.conversion.run.serve import VERSION

    names = [package.name for package in manifest.packages]
    output.result({"protocol": VERSION, "digest": manifest.digest, "packages": names}, "")
