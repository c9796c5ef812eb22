"""The inputs and outputs of a model as its description states them: arrays, pictures, labels.

The program itself knows only tensors. The description adds which of them are pictures, which sizes
a flexible one may have, and the value of an input that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mdm_apple.config.types import NumpyArray

from .errors import ExecutionError
from .pictures import Colors, channels_of, sides_of, to_values

Kind = Literal["array", "picture", "label", "probabilities", "other"]
Shape = tuple[int, ...]

_DTYPES = {65552: "fp16", 65568: "fp32", 65600: "fp64", 131080: "int8", 131104: "int32"}
_COLORS: dict[int, Colors] = {10: "gray", 20: "RGB", 30: "BGR", 40: "gray fp16"}
_MANY_SHAPES = 4


@dataclass(frozen=True)
class Feature:
    """One input or output.

    kind: other stands for what no ML program has. dtype: of an array, "" if not stated; of anything
    else, the name that the description gives it. shape: the default shape, () if not stated; of a
    picture (1, C, H, W). shapes: all allowed shapes, if they are listed. ranges: smallest and
    largest size by axis, if they are ranges; None: no limit. default: the value of an input that
    is left out; None: it must be given.
    """

    name: str
    kind: Kind
    dtype: str
    shape: Shape = ()
    shapes: tuple[Shape, ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    colors: Colors | None = None
    default: float | None = None

    @property
    def is_flexible(self) -> bool:
        return len(self.shapes) > 1 or any(low != high for low, high in self.ranges)

    def allows(self, shape: Shape) -> bool:
        """Whether the description allows this shape; it need not state any."""
        if self.shapes:
            return shape in self.shapes
        if self.ranges:
            return len(shape) == len(self.ranges) and all(
                low <= size and (high is None or size <= high)
                for size, (low, high) in zip(shape, self.ranges, strict=True)
            )
        return not self.shape or shape == self.shape

    def accept(self, value: Any) -> NumpyArray:
        """An input as the program reads it. Raises ExecutionError."""
        if self.kind not in ("array", "picture"):
            raise ExecutionError(
                f"input {self.name!r}: is a {self.dtype}, which is not supported by this executor."
            )
        array, label = np.asarray(value), f"input {self.name!r}"
        if self.colors is not None:
            high, wide = sides_of(array, self.colors, label, str(self))
            if not self.allows((1, channels_of(self.colors), high, wide)):
                raise ExecutionError(
                    f"{label}: expected {self}, got one {wide} wide and {high} high; resize it "
                    "first."
                )
            return to_values(array, self.colors, label)
        if not self.allows(array.shape):
            raise ExecutionError(f"{label}: expected {self}, got {array.dtype}{list(array.shape)}.")
        return array

    def __str__(self) -> str:
        if self.colors is not None:
            return f"a picture in {self.colors}, {_picture_sizes(self)}"
        if self.kind != "array":
            return self.dtype
        if self.shapes:
            shown = " or ".join(str(list(shape)) for shape in self.shapes[:_MANY_SHAPES])
            more = " ..." if len(self.shapes) > _MANY_SHAPES else ""
            return f"{self.dtype}{shown}{more}"
        sizes = [_range(low, high) for low, high in self.ranges] or list(map(str, self.shape))
        return f"{self.dtype}[{', '.join(sizes)}]" if sizes else f"{self.dtype or 'array'}"


@dataclass(frozen=True)
class Features:
    """Inputs and outputs by name."""

    inputs: dict[str, Feature]
    outputs: dict[str, Feature]


def read_features(description: Any) -> Features:
    """The features of a model, or of one of its functions, from the message that describes it."""
    inputs, outputs = (
        {feature.name: feature for feature in map(_feature, messages)}
        for messages in (description.input, description.output)
    )
    return Features(inputs, outputs)


def _feature(message: Any) -> Feature:
    kind = str(message.type.WhichOneof("Type") or "nothing")
    if kind == "multiArrayType":
        return _array(str(message.name), message.type)
    if kind == "imageType":
        return _picture(str(message.name), message.type.imageType)
    known: dict[str, Kind] = {
        "stringType": "label",
        "int64Type": "label",
        "dictionaryType": "probabilities",
    }
    return Feature(str(message.name), known.get(kind, "other"), kind.removesuffix("Type"))


def _array(name: str, kind: Any) -> Feature:
    array = kind.multiArrayType
    flexible, given = array.WhichOneof("ShapeFlexibility"), array.WhichOneof("defaultOptionalValue")
    shapes: tuple[Shape, ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    if flexible == "enumeratedShapes":
        shapes = tuple(tuple(map(int, one.shape)) for one in array.enumeratedShapes.shapes)
    elif flexible == "shapeRange":
        ranges = tuple(map(_limits, array.shapeRange.sizeRanges))
    return Feature(
        name,
        "array",
        _DTYPES.get(array.dataType, ""),
        tuple(map(int, array.shape)),
        shapes,
        ranges,
        default=float(getattr(array, given)) if kind.isOptional and given else None,
    )


def _picture(name: str, image: Any) -> Feature:
    colors = _COLORS.get(image.colorSpace)
    if colors is None:
        return Feature(name, "other", "picture of unknown colors")
    channels = channels_of(colors)
    shapes: tuple[Shape, ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    flexible = image.WhichOneof("SizeFlexibility")
    if flexible == "enumeratedSizes":
        sizes = image.enumeratedSizes.sizes
        shapes = tuple((1, channels, int(size.height), int(size.width)) for size in sizes)
    elif flexible == "imageSizeRange":
        sides = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        ranges = ((1, 1), (channels, channels), *map(_limits, sides))
    shape = (1, channels, int(image.height), int(image.width))
    return Feature(name, "picture", "picture", shape, shapes, ranges, colors)


def _limits(size: Any) -> tuple[int, int | None]:
    high = int(size.upperBound)
    return int(size.lowerBound), None if high < 0 else high


def _range(low: int, high: int | None) -> str:
    return str(low) if low == high else f"{low} to {'any' if high is None else high}"


def _picture_sizes(feature: Feature) -> str:
    if feature.shapes:
        shown = " or ".join(
            f"{w} wide and {h} high" for _, _, h, w in feature.shapes[:_MANY_SHAPES]
        )
        return shown + (" ..." if len(feature.shapes) > _MANY_SHAPES else "")
    if feature.ranges:
        (_, _, high, wide) = feature.ranges
        return f"{_range(*wide)} wide and {_range(*high)} high"
    return f"{feature.shape[-1]} wide and {feature.shape[-2]} high"
