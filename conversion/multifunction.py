"""Several programs as the functions of one package; what they have in common is stored once.

    stop_16, stop_32, stop_64 ──► denoiser.mlpackage   (one weight file, as large as stop_64's)

Enters: packages of one function each. Leaves: one package that Core ML opens by function name.
Weights are one when their bytes are, whatever they are called. The programs are left as they are:
coremltools' own merge compiles them again, and drops what the metadata say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.errors import ConversionError
from conversion.execute import Package
from conversion.execute.blob import WeightFile
from conversion.replace import WEIGHT_FILE, program_path, read_model, stored_values
from conversion.weightfile import WeightFileWriter

OLDEST_SPECIFICATION = 9  # iOS 18; earlier systems know one function per package


def merge_packages(sources: Mapping[str, Path], target: Path, default: str) -> None:
    """Write the packages to `target` as functions of these names.

    Args:
        default: the function that runs where none is asked for.

    Raises ConversionError for packages of several functions or for systems before iOS 18.
    """
    messages = {name: read_model(path) for name, path in sources.items()}
    for name, message in messages.items():
        if list(message.mlProgram.functions) != ["main"]:
            raise ConversionError(f"{sources[name].name}: has functions of its own already.")
        if message.specificationVersion < OLDEST_SPECIFICATION:
            raise ConversionError(
                f"{target.name}: several functions in a package need iOS 18; convert with "
                "--target iOS18."
            )
    merged = type(messages[default])()
    merged.CopyFrom(messages[default])
    merged.specificationVersion = max(m.specificationVersion for m in messages.values())
    merged.mlProgram.functions.clear()
    for field in ("input", "output", "functions"):
        merged.description.ClearField(field)
    merged.description.defaultFunctionName = default

    program = target / "Data" / program_path(sources[default])
    (program.parent / WEIGHT_FILE).parent.mkdir(parents=True)
    writer = _SharingWriter(program.parent / WEIGHT_FILE)
    try:
        for name, path in sources.items():
            message = messages[name]
            function = message.mlProgram.functions["main"]
            _move_weights(Package.open(path), function, writer)
            merged.mlProgram.functions[name].CopyFrom(function)
            described = merged.description.functions.add()
            described.name = name
            described.input.extend(message.description.input)
            described.output.extend(message.description.output)
    finally:
        writer.close()
    program.write_bytes(merged.SerializeToString(deterministic=True))
    manifest = (sources[default] / "Manifest.json").read_text(encoding="utf-8")
    (target / "Manifest.json").write_text(json.dumps(json.loads(manifest)), encoding="utf-8")


class _SharingWriter(WeightFileWriter):
    """Appends a record only if none with the same bytes is there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets: dict[tuple[int, bytes, int], int] = {}

    def share(self, source: WeightFile, offset: int) -> int:
        code, data, unused = source.record(offset)
        key = code, hashlib.sha256(data).digest(), unused
        if key not in self._offsets:
            self._offsets[key] = self.copy(source, offset)
        return self._offsets[key]


def _move_weights(package: Package, function: Any, writer: _SharingWriter) -> None:
    files: dict[str, WeightFile] = {}
    for block in function.block_specializations.values():
        for operation in block.operations:
            for value in stored_values(operation):
                blob = value.blobFileValue
                if blob.fileName not in files:
                    files[blob.fileName] = package.weight_file(blob.fileName)
                blob.offset = writer.share(files[blob.fileName], blob.offset)
                blob.fileName = f"@model_path/{WEIGHT_FILE}"
