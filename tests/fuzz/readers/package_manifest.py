"""Manifest.json of a Core ML package, which says where its program lies."""

from __future__ import annotations

from pathlib import Path

from fuzz.readers.package import WEIGHTS, load, write_package
from fuzz.readers.package_weights import PROGRAM


def read(folder: Path, data: bytes) -> None:
    load(write_package(folder, PROGRAM.read_bytes(), data, WEIGHTS.read_bytes()))
