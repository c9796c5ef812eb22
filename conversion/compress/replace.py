"""A package with some of its constants replaced by palettes, all else being as it was.

Enters: a package and palettes by where the weights lie. Leaves: a package whose program holds a
`constexpr_lut_to_dense` of the same name in the place of each, in the form that coremltools writes.
Nothing is re-compiled: coremltools would run all of its passes over the program, which takes longer
than finding the palettes. A weight that several functions share stays one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..execute import Package
from ..execute.blob import WeightFile
from ..execute.schema import model_message
from ..packages.weightfile import WeightFileWriter
from .palette_jobs import PackedPalettes

OLD_OPSETS = ("CoreML6", "CoreML7")  # iOS 16 and 17: one palette per weight, among the attributes
IN_PLACE = 10  # constants of fewer numbers stand in the program itself
WEIGHT_FILE = "weights/weight.bin"

# what MIL calls its element types
_TYPE_CODES = {
    "fp16": 10,
    "uint1": 37,
    "uint2": 36,
    "uint3": 39,
    "uint4": 35,
    "uint6": 38,
    "uint8": 31,
    "uint32": 33,
}

Where = tuple[str, int]  # file as the program names it, offset


def replace_weights(source: Path, target: Path, palettes: Mapping[Where, PackedPalettes]) -> None:
    """Write the package `source` to `target` with `palettes` in the place of stored weights.

    Raises ExecutionError for a damaged package.
    """
    save_program(Package.open(source), read_model(source), target, palettes)


def read_model(source: Path) -> Any:
    """The `Model` message of a package, to be changed."""
    message = model_message()
    message.ParseFromString((source / "Data" / program_path(source)).read_bytes())
    return message


def save_program(
    package: Package, message: Any, target: Path, palettes: Mapping[Where, PackedPalettes]
) -> None:
    """Write `message`, made from that of `package`, with the weights that it still refers to."""
    model = target / "Data" / program_path(package.path)
    (model.parent / WEIGHT_FILE).parent.mkdir(parents=True)
    writer = WeightFileWriter(model.parent / WEIGHT_FILE)
    try:
        moving = _Moving(package, writer, palettes)
        for name in sorted(message.mlProgram.functions):
            function = message.mlProgram.functions[name]
            for block in function.block_specializations.values():
                for operation in block.operations:
                    moving.move(operation, function.opset)
    finally:
        writer.close()
    model.write_bytes(message.SerializeToString(deterministic=True))
    (target / "Manifest.json").write_bytes((package.path / "Manifest.json").read_bytes())


def program_path(package: Path) -> str:
    """Of the program of a package, below its Data folder."""
    root = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    return root["itemInfoEntries"][root["rootModelIdentifier"]]["path"]


class _Moving:
    """Copies what the operations of a program refer to into a new weight file."""

    def __init__(
        self, package: Package, writer: WeightFileWriter, palettes: Mapping[Where, PackedPalettes]
    ) -> None:
        self._package, self._writer, self._palettes = package, writer, palettes
        self._files: dict[str, WeightFile] = {}
        self._moved: dict[Where, int] = {}  # records copied already
        self._written: dict[Where, tuple[int, int]] = {}  # indices and values of palettes

    def move(self, operation: Any, opset: str) -> None:
        if operation.type == "const":
            stored = operation.attributes["val"].blobFileValue
            palette = self._palettes.get((stored.fileName, stored.offset))
            if palette is not None:
                self._replace(operation, (stored.fileName, stored.offset), palette, opset)
                return
        for value in stored_values(operation):
            blob = value.blobFileValue
            where = (blob.fileName, blob.offset)
            if where not in self._moved:
                self._moved[where] = self._writer.copy(self._file(blob.fileName), blob.offset)
            blob.fileName, blob.offset = f"@model_path/{WEIGHT_FILE}", self._moved[where]

    def _file(self, name: str) -> WeightFile:
        if name not in self._files:
            self._files[name] = self._package.weight_file(name)
        return self._files[name]

    def _replace(self, operation: Any, where: Where, palette: PackedPalettes, opset: str) -> None:
        """Turn the `const` into a lookup that puts out the same name."""
        dimensions = operation.outputs[0].type.tensorType.dimensions
        shape = [int(d.constant.size) for d in dimensions]
        old = opset in OLD_OPSETS
        groups, entries = palette.values.shape
        assert not (old and groups > 1), "grouped palettes need iOS 18"
        count = int(np.prod(shape))
        packed_type = "uint8" if old else f"uint{palette.bits}"
        packed_count = len(palette.indices) if old else count
        if where not in self._written:
            # values first among attributes, indices first among inputs: as coremltools has it
            values = 0
            indices = self._writer.add(palette.indices, packed_type, packed_count)
            if palette.values.size >= IN_PLACE:
                values = self._writer.add(palette.values, "fp16", palette.values.size)
            self._written[where] = indices, values
        indices, values = self._written[where]

        operation.type = "constexpr_lut_to_dense"
        del operation.attributes["val"]
        if old:
            holder: Any = operation.attributes
            lut_shape, indices_shape = [entries], [len(palette.indices)]
            extent = np.array(shape, np.uint32)
            _fill(holder["shape"], "uint32", [len(shape)], extent.tobytes())
        else:
            holder = _Inputs(operation)
            lut_shape = [1] * len(shape) + [entries, 1]
            lut_shape[palette.axis] = groups
            indices_shape = shape
        _fill(holder["indices"], packed_type, indices_shape, indices)
        lut = values if values else np.ascontiguousarray(palette.values).tobytes()
        _fill(holder["lut"], "fp16", lut_shape, lut)


class _Inputs:
    """Inputs of an operation, each a value in place."""

    def __init__(self, operation: Any) -> None:
        self._operation = operation

    def __getitem__(self, name: str) -> Any:
        return self._operation.inputs[name].arguments.add().value


def _fill(value: Any, dtype: str, shape: list[int], content: int | bytes) -> None:
    """Make a value of the bytes given, or of those at an offset of the weight file."""
    tensor = value.type.tensorType
    tensor.dataType, tensor.rank = _TYPE_CODES[dtype], len(shape)
    for size in shape:
        tensor.dimensions.add().constant.size = size
    if isinstance(content, bytes):
        value.immediateValue.tensor.bytes.values = content
    else:
        value.blobFileValue.fileName = f"@model_path/{WEIGHT_FILE}"
        value.blobFileValue.offset = content


def stored_values(operation: Any) -> Iterator[Any]:
    """The values of an operation that lie in a weight file."""
    values = list(operation.attributes.values())
    values += [b.value for i in operation.inputs.values() for b in i.arguments]
    return (v for v in values if v.WhichOneof("value") == "blobFileValue")
