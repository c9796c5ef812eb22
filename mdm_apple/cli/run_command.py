"""`mdm run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from mdm_apple.cli.model_options import FOLDER
from mdm_apple.cli.output import Output, filling, output_options, refuse_existing
from mdm_apple.config.types import ExecutorPrecision
from mdm_apple.errors import MdmError, require_installed

if TYPE_CHECKING:
    from mdm_apple.conversion.execute.run_package import Result


@dataclass(frozen=True)
class RunRequest:
    """The options of `mdm run`."""

    package: Path
    inputs: tuple[str, ...]
    out: Path
    function: str | None
    precision: ExecutorPrecision
    overwrite: bool


@click.command(
    epilog="""\b
Examples:
  mdm run Classifier.mlpackage --input image=cat.png --out labels
  mdm run Encoder.mlpackage --input ids=ids.npy --input mask=mask.npy --out encoded
"""
)
@click.argument("package", type=click.Path(path_type=Path), metavar="PACKAGE")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=F",
    help="An input and its file: a .npy, or a PNG, JPEG, WebP or BMP where the package takes a "
    "picture. Once for each input; mdm inspect PACKAGE names them.",
)
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    metavar="DIR",
    help="Folder for the outputs: NAME.npy, NAME.png for a picture, NAME.json for labels.",
)
@click.option("--function", metavar="NAME", help="Function to run, if the package has several.")
@click.option(
    "--precision",
    type=click.Choice(get_args(ExecutorPrecision)),
    default="fp32",
    show_default=True,
    help="fp16 rounds every value that the program declares as fp16, as a device does.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace files of the same names in an existing folder; others stay.",
)
@output_options
@filling(RunRequest)
def command(request: RunRequest, output: Output) -> None:
    """Run anybody's Core ML package on this machine, without Core ML.

    PACKAGE is a .mlpackage, or a .mlmodel, that holds an ML program or a pipeline of them. Pictures
    must have the size that the package takes; their scale and bias are part of the program.
    """
    files = _files(request.inputs)
    refuse_existing(request.out, request.overwrite)
    _check_package(request.package)
    require_installed("torch", "coremltools")
    from mdm_apple.conversion.execute.run_package import run_package

    results = run_package(request.package, files, request.out, request.function, request.precision)
    lines = [str(request.out), *(line for result in results for line in _lines(result))]
    output.result(
        {"out": str(request.out), "results": [result.as_json() for result in results]},
        "\n".join(lines),
    )


def _files(given: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not name or not equals or not file:
            raise MdmError(f"input: expected NAME=FILE, such as image=cat.png, got {text!r}.")
        if name in files:
            raise MdmError(f"input {name!r}: is given twice; each input has one file.")
        if not Path(file).is_file():
            raise MdmError(f"{file}: no such file; it is given for input {name!r}.")
        files[name] = Path(file)
    return files


def _check_package(path: Path) -> None:
    if not path.exists():
        raise MdmError(f"{path}: no such package; give a .mlpackage or a .mlmodel.")
    if path.suffix == ".mlmodelc":
        raise MdmError(f"{path}: is compiled; give the .mlpackage that it was compiled from.")
    if path.suffix == ".mlmodel" or (path / "Manifest.json").is_file():
        return
    if (path / "manifest.json").is_file():
        raise MdmError(f"{path}: is a bundle; use mdm sample, or give one of the packages in it.")
    if (path / "config.json").is_file():
        raise MdmError(f"{path}: is a model folder; use mdm sample, or make a bundle with convert.")
    if path.is_dir():
        raise MdmError(f"{path}: holds no Manifest.json; give the whole folder of a .mlpackage.")
    raise MdmError(f"{path}: is no package; give the folder of a .mlpackage, or a .mlmodel file.")


def _lines(result: Result) -> list[str]:
    """One output in words: its file, and its shape and range, or its labels."""
    if result.shape is None:
        found = [f"  {label}: {score:.6g}" for label, score in result.best]
        label = "" if result.label is None else f"  {result.label}"
        return [f"{result.name}: {result.file}{label}", *found]
    values = "no finite values" if result.low is None else f"{result.low:.6g} to {result.high:.6g}"
    bad = f", {result.nonfinite:,} not finite" if result.nonfinite else ""
    kind = f"{result.dtype}{list(result.shape)}"
    return [f"{result.name}: {result.file}  {kind}, {values}{bad}"]
