"""The program of a Core ML package, which refers to a small file of weights."""

from __future__ import annotations

import json
from pathlib import Path

from mdm_apple.conversion.execute import Package

MODEL = "com.apple.CoreML/model.mlmodel"
ENTRIES = {"a": {"path": MODEL}, "b": {"path": "com.apple.CoreML/weights"}}
MANIFEST = json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": ENTRIES})
WEIGHTS = Path(__file__).parents[1] / "corpus" / "package_weights" / "small.bin"


def write_package(folder: Path, model: bytes, manifest: str | bytes, weights: bytes) -> Path:
    package = folder / "some.mlpackage"
    program = package / "Data" / MODEL
    (program.parent / "weights").mkdir(parents=True)
    program.write_bytes(model)
    (program.parent / "weights" / "weight.bin").write_bytes(weights)
    data = manifest if isinstance(manifest, bytes) else manifest.encode()
    (package / "Manifest.json").write_bytes(data)
    return package


def load(package: Path) -> None:
    opened = Package.open(package)
    for name in opened.functions:
        opened.load(name)


def read(folder: Path, data: bytes) -> None:
    load(write_package(folder, data, MANIFEST, WEIGHTS.read_bytes()))
