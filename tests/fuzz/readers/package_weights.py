"""The file of weights of a Core ML package."""

from __future__ import annotations

from pathlib import Path

from fuzz.readers.package import MANIFEST, load, write_package

PROGRAM = Path(__file__).parents[1] / "corpus" / "package" / "small.mlmodel"


def read(folder: Path, data: bytes) -> None:
    load(write_package(folder, PROGRAM.read_bytes(), MANIFEST, data))
