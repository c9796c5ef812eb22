"""Replaces some constants of a package by palettes and leaves the rest unchanged.

Input: a package, and palettes by the place of their weights. Output: a package whose program has a
`constexpr_lut_to_dense` of the same name instead of each constant, in the form coremltools writes.
Nothing is recompiled: coremltools would run all its passes over the program, which takes longer
than finding the palettes. A weight shared by several functions stays shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..execute import Package
from ..package_file.program_file import WEIGHT_FILE, Where, read_model, save_program
from ..package_file.weightfile import WeightFileWriter
from .palette_jobs import PackedPalettes

OLD_OPSETS = ("CoreML6", "CoreML7")  # iOS 16 and 17: one palette per weight, among the attributes
IN_PLACE = 10  # smaller constants are stored in the program itself

# MIL's names for its element types
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


def replace_weights(source: Path, target: Path, palettes: Mapping[Where, PackedPalettes]) -> None:
    """Write the package `source` to `target` with `palettes` instead of the stored weights.

    Raises ExecutionError for a damaged package.
    """
    rewrite = _ByPalettes(palettes)
    save_program(Package.open(source), read_model(source), target, rewrite)


class _ByPalettes:
    """Turns stored constants into palette lookups."""

    def __init__(self, palettes: Mapping[Where, PackedPalettes]) -> None:
        self._palettes = palettes
        self._written: dict[Where, tuple[int, int]] = {}  # indices and values of palettes

    def __call__(self, operation: Any, opset: str, writer: WeightFileWriter) -> bool:
        """Turn a constant that has a palette into a lookup; returns whether it did."""
        if operation.type != "const":
            return False
        stored = operation.attributes["val"].blobFileValue
        where = (stored.fileName, stored.offset)
        palette = self._palettes.get(where)
        if palette is None:
            return False
        self._replace(operation, where, palette, opset, writer)
        return True

    def _replace(
        self,
        operation: Any,
        where: Where,
        palette: PackedPalettes,
        opset: str,
        writer: WeightFileWriter,
    ) -> None:
        """Turn the `const` into a lookup whose output has the same name."""
        dimensions = operation.outputs[0].type.tensorType.dimensions
        shape = [int(d.constant.size) for d in dimensions]
        old = opset in OLD_OPSETS
        groups, entries = palette.values.shape
        assert not (old and groups > 1), "grouped palettes need iOS 18"
        count = int(np.prod(shape))
        packed_type = "uint8" if old else f"uint{palette.bits}"
        packed_count = len(palette.indices) if old else count
        if where not in self._written:
            # coremltools puts values first among attributes and indices first among inputs
            values = 0
            indices = writer.add(palette.indices, packed_type, packed_count)
            if palette.values.size >= IN_PLACE:
                values = writer.add(palette.values, "fp16", palette.values.size)
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
    """Inputs of an operation, each an immediate value."""

    def __init__(self, operation: Any) -> None:
        self._operation = operation

    def __getitem__(self, name: str) -> Any:
        return self._operation.inputs[name].arguments.add().value


def _fill(value: Any, dtype: str, shape: list[int], content: int | bytes) -> None:
    """Fill a value with the given bytes, or with a reference to an offset in the weight file."""
    tensor = value.type.tensorType
    tensor.dataType, tensor.rank = _TYPE_CODES[dtype], len(shape)
    for size in shape:
        tensor.dimensions.add().constant.size = size
    if isinstance(content, bytes):
        value.immediateValue.tensor.bytes.values = content
    else:
        value.blobFileValue.fileName = f"@model_path/{WEIGHT_FILE}"
        value.blobFileValue.offset = content
