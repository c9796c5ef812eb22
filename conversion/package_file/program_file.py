"""Rewrites a package's program and its weight file together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..execute import Package
from ..execute.blob import WeightFile
from ..execute.schema import model_message
from .weightfile import WeightFileWriter

WEIGHT_FILE = "weights/weight.bin"

Where = tuple[str, int]  # file as the program names it, offset
# Takes an operation, its opset and the new weight file; returns whether it rewrote the operation.
Rewrite = Callable[[Any, str, WeightFileWriter], bool]


def read_model(source: Path) -> Any:
    """The `Model` message of a package, for changing."""
    message = model_message()
    message.ParseFromString((source / "Data" / program_path(source)).read_bytes())
    return message


def save_program(
    package: Package, message: Any, target: Path, rewrite: Rewrite | None = None
) -> None:
    """Write `message`, a changed message of `package`, with the weights it still refers to.

    Args:
        rewrite: called with every operation before its weights are copied.
    """
    model = target / "Data" / program_path(package.path)
    (model.parent / WEIGHT_FILE).parent.mkdir(parents=True)
    writer = WeightFileWriter(model.parent / WEIGHT_FILE)
    try:
        copying = _Copying(package, writer)
        for name in sorted(message.mlProgram.functions):
            function = message.mlProgram.functions[name]
            for block in function.block_specializations.values():
                for operation in block.operations:
                    if rewrite is None or not rewrite(operation, function.opset, writer):
                        copying.copy(operation)
    finally:
        writer.close()
    model.write_bytes(message.SerializeToString(deterministic=True))
    (target / "Manifest.json").write_bytes((package.path / "Manifest.json").read_bytes())


class _Copying:
    """Copies the weights that a program's operations refer to into a new weight file."""

    def __init__(self, package: Package, writer: WeightFileWriter) -> None:
        self._package, self._writer = package, writer
        self._files: dict[str, WeightFile] = {}
        self._copied: dict[Where, int] = {}  # new offset by old place

    def copy(self, operation: Any) -> None:
        for value in stored_values(operation):
            blob = value.blobFileValue
            where = (blob.fileName, blob.offset)
            if where not in self._copied:
                self._copied[where] = self._writer.copy(self._file(blob.fileName), blob.offset)
            blob.fileName, blob.offset = f"@model_path/{WEIGHT_FILE}", self._copied[where]

    def _file(self, name: str) -> WeightFile:
        if name not in self._files:
            self._files[name] = self._package.weight_file(name)
        return self._files[name]


def program_path(package: Path) -> str:
    """Path of a package's program below its Data folder."""
    root = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    return root["itemInfoEntries"][root["rootModelIdentifier"]]["path"]


def rename_values(operation: Any, names: Mapping[str, str]) -> None:
    """Rename some of the values that an operation makes and reads. names: new by old."""
    for output in operation.outputs:
        output.name = names.get(output.name, output.name)
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name" and binding.name in names:
                binding.name = names[binding.name]


def stored_values(operation: Any) -> Iterator[Any]:
    """The values of an operation that are stored in a weight file."""
    values = list(operation.attributes.values())
    values += [b.value for i in operation.inputs.values() for b in i.arguments]
    return (v for v in values if v.WhichOneof("value") == "blobFileValue")
