"""The contents of anybody's package: inputs, outputs, operations, what cannot be run, weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..execute import Package
from ..execute.blob import packed_size
from ..execute.compressed import DECODERS
from ..execute.errors import ExecutionError
from ..execute.features import Feature
from ..execute.graph import DTYPES
from ..execute.opset import KNOWN


@dataclass(frozen=True)
class PackageContents:
    """stages: models of a pipeline, 1 for a program. spec_version: 8 for iOS 17.

    inputs, outputs: what each takes or is, by name. operations: count of each kind without
    constants, blocks of loops included, over all functions and stages. unknown: those of them that
    the executor does not know. refusal: why the executor does not take the package, None if it
    does; weights are not read for that. weight_files: bytes by name. weights: bytes of the stored
    numbers by type.
    """

    name: str
    stages: int
    functions: tuple[str, ...]
    spec_version: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    operations: dict[str, int]
    unknown: tuple[str, ...]
    refusal: str | None
    weight_files: dict[str, int]
    weights: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_package(path: Path) -> PackageContents:
    """Look into a package or a single model file; nothing is executed.

    Raises ExecutionError for what is no ML program and no pipeline of ML programs.
    """
    package = Package.open(path)
    operations = list(package.operations())
    counts = Counter(str(o.type) for o in operations if not _is_constant(str(o.type)))
    kinds = {str(o.type) for o in operations}
    unknown = tuple(sorted(k for k in kinds if k not in KNOWN and k not in DECODERS))
    features = package.features()
    return PackageContents(
        name=path.name,
        stages=max(len(package.stages), 1),
        functions=package.functions,
        spec_version=package.spec_version,
        inputs=_shown(features.inputs),
        outputs=_shown(features.outputs),
        operations=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        unknown=unknown,
        refusal=_refusal(package),
        weight_files=_weight_files(package, operations),
        weights=_bytes_by_type(operations),
    )


def _is_constant(kind: str) -> bool:
    return kind == "const" or kind.startswith("constexpr_")


def _shown(features: dict[str, Feature]) -> dict[str, str]:
    return {name: str(feature) for name, feature in features.items()}


def _refusal(package: Package) -> str | None:
    """Why the executor does not take the package, in its own words."""
    try:
        package.check()
    except ExecutionError as error:
        return str(error)
    return None


def _weight_files(package: Package, operations: list[Any]) -> dict[str, int]:
    names = sorted({str(blob.fileName) for o in operations for _, blob in _blobs(o)})
    return {Path(name).name: package.weight_path(name).stat().st_size for name in names}


def _bytes_by_type(operations: list[Any]) -> dict[str, int]:
    """Bytes of the numbers in weight files; numbers that several operations share count once."""
    stored: dict[tuple[str, int], tuple[str, int]] = {}
    for operation in operations:
        for kind, blob in _blobs(operation):
            dtype = DTYPES.get(kind.dataType, f"type {kind.dataType}")
            count = 1
            for dimension in kind.dimensions:
                count *= int(dimension.constant.size)
            place = (str(blob.fileName), int(blob.offset))
            stored[place] = (dtype, packed_size(dtype, count) if kind.dataType in DTYPES else 0)
    sizes = Counter[str]()
    for dtype, size in stored.values():
        sizes[dtype] += size
    return dict(sizes.most_common())


def _blobs(operation: Any) -> Iterator[tuple[Any, Any]]:
    """Tensor type and place of each value of an operation that lies in a weight file."""
    values = list(operation.attributes.values())
    for argument in operation.inputs.values():
        values += [b.value for b in argument.arguments if b.WhichOneof("binding") == "value"]
    for value in values:
        if value.WhichOneof("value") == "blobFileValue":
            yield value.type.tensorType, value.blobFileValue
