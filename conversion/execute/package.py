"""Finds, checks and describes a saved .mlpackage or .mlmodel. Nothing is executed before `load`.

Layout: Manifest.json lists the items under Data/, one of them the root model (a protobuf file). The
weights are in files next to the model; the program calls them "@model_path/weights/weight.bin".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mdm_apple.config.strict_json import unknown_name
from mdm_apple.config.types import ExecutorPrecision
from mdm_apple.storage.files import is_lfs_pointer

from .blob import WeightFile
from .described import DescribedProgram, needs_description
from .errors import ExecutionError, FlexibleShapeError
from .executable import Executable
from .features import Features, read_features
from .graph import Function, TensorType, read_function
from .load import load_program
from .pipeline import Pipeline, Stage
from .program import output_types, refuse_unknown
from .schema import model_message

_MANIFEST_LIMIT = 1 << 20
_MODEL_LIMIT = 1 << 30  # of the program without its weights
_MODEL_PATH = "@model_path/"
PIPELINES = ("pipeline", "pipelineClassifier", "pipelineRegressor")
_REMEDY = 'only ML programs can be run here; convert with convert_to="mlprogram"'


@dataclass(frozen=True)
class Package:
    """A Core ML package with checked files. Make one with `Package.open`.

    functions: all names, none in a pipeline. spec_version: 8 for iOS 17. stages: the programs of a
    pipeline in order, none in a program. inputs, outputs: tensors of the default function.
    """

    path: Path
    functions: tuple[str, ...]
    default_function: str
    spec_version: int
    metadata: dict[str, str]
    stages: tuple[Package, ...]
    _message: Any
    _model_folder: Path
    _items: tuple[Path, ...]
    _read: dict[str, Function]  # functions already read

    @classmethod
    def open(cls, path: Path | str) -> Package:
        """Read and check the package, or the single model file, at `path`. Raises ExecutionError.

        It may hold an ML program or a pipeline of ML programs.
        """
        path = Path(path)
        root, items = _read_root(path)
        return cls._of(path, read_model(root), root, items)

    @classmethod
    def _of(cls, path: Path, message: Any, root: Path, items: tuple[Path, ...]) -> Package:
        kind = message.WhichOneof("Type")
        description = message.description
        metadata = dict(description.metadata.userDefined)
        if kind in PIPELINES:
            pipeline = message.pipeline if kind == "pipeline" else getattr(message, kind).pipeline
            stages = tuple(cls._of(path, stage, root, items) for stage in pipeline.models)
            if not stages:
                raise ExecutionError(f"{root}: a pipeline without models; the package is damaged.")
            functions, default = (), ""
        elif kind == "mlProgram":
            stages, functions = (), tuple(sorted(message.mlProgram.functions))
            default = description.defaultFunctionName or "main"
            if default not in functions:
                raise ExecutionError(
                    f"{path}: its default function {default!r} is missing; it has "
                    f"{', '.join(functions) or 'none'}."
                )
        else:
            raise ExecutionError(
                f"{root}: expected an ML program, got {kind or 'an empty model'}"
                f"{f'; {_REMEDY}' if kind else ''}."
            )
        version = int(message.specificationVersion)
        return cls(
            path, functions, default, version, metadata, stages, message, root.parent, items, {}
        )

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Raises ExecutionError for a pipeline."""
        return dict(self._any_function(None).inputs)

    @property
    def outputs(self) -> dict[str, TensorType]:
        """Raises ExecutionError for a pipeline."""
        return output_types(self._any_function(None))

    def features(self, function: str | None = None) -> Features:
        """Inputs and outputs as the description of the package, or of one function, states them.

        Raises ExecutionError for an unknown function.
        """
        if function is not None and function not in self.functions:
            raise ExecutionError(self._no_function(function))
        return read_features(self._description(function))

    def function(self, name: str | None = None) -> Function:
        """The operations of one function of fixed shapes.

        Raises ExecutionError for an unknown name, a pipeline, loops and branches, and its
        subclass FlexibleShapeError for flexible shapes; `load` takes all of these but the first.
        """
        function = self._any_function(name)
        flexible = function.first_flexible
        if flexible is not None:
            raise FlexibleShapeError(
                f"{flexible}: has a flexible shape, which is not supported; convert with a fixed "
                "shape."
            )
        for operation in function.operations:
            if operation.blocks:
                raise ExecutionError(f"{operation.label}: control flow is not supported here.")
        return function

    def _any_function(self, name: str | None) -> Function:
        if self.stages:
            raise ExecutionError(f"{self.path}: is a pipeline of {len(self.stages)} models.")
        name = name or self.default_function
        if name not in self.functions:
            raise ExecutionError(self._no_function(name))
        if name not in self._read:
            self._read[name] = read_function(name, self._message.mlProgram.functions[name])
        return self._read[name]

    def _no_function(self, name: str) -> str:
        if self.stages:
            return f"{self.path}: no function {name!r}; it is a pipeline."
        return f"{self.path}: no function {name!r}. {unknown_name(name, self.functions)}"

    def _description(self, function: str | None) -> Any:
        """The part of the description that is about a function; it may hold one for each."""
        description = self._message.description
        for one in description.functions:
            if one.name == (function or self.default_function):
                return one
        return description

    def operations(self) -> Iterator[Any]:
        """The protobuf messages of all operations, of blocks and of all functions and stages."""
        for stage in self.stages:
            yield from stage.operations()
        if not self.stages:
            for name in self.functions:
                function = self._message.mlProgram.functions[name]
                for block in function.block_specializations.values():
                    yield from _operations(block)

    def check(self) -> None:
        """Raise ExecutionError if some function or stage has what the executor does not take.

        It reads no weights, so their damage is found by `load` only.
        """
        for stage in self.stages:
            stage.check()
        for name in self.functions:
            refuse_unknown(self._any_function(name))

    def load(
        self, function: str | None = None, precision: ExecutorPrecision = "fp32"
    ) -> Executable:
        """Decode the weights of one function and plan its execution.

        Args:
            precision: "fp32" rounds no activation; "fp16" rounds every fp16-typed value after the
                operation that made it (accumulation inside an operation stays fp32).

        Raises ExecutionError for an unknown function or operation, damaged weights, or a function
        too large for memory.
        """
        features = self.features(function)
        if self.stages:
            loaded = [(s.load(precision=precision), s.features()) for s in self.stages]
            return Pipeline(tuple(Stage(*stage) for stage in loaded), features)
        read = self._any_function(function)
        program = load_program(read, _Weights(self), precision)
        if needs_description(features, read.classifier):
            return DescribedProgram(program, features, read.classifier)
        return program

    def weight_file(self, name: str) -> WeightFile:
        """Open the weight file that the program calls `name`. Raises ExecutionError."""
        return WeightFile(self.weight_path(name))

    def weight_path(self, name: str) -> Path:
        """Path of the weight file that the program calls `name`. Raises ExecutionError."""
        if not name.startswith(_MODEL_PATH):
            raise ExecutionError(f"{self.path}: weights at {name!r}, expected {_MODEL_PATH}...")
        package = self.path if self.path.is_dir() else self._model_folder
        file = _inside(self._model_folder, name.removeprefix(_MODEL_PATH), package)
        if not any(file == item or item in file.parents for item in self._items):
            raise ExecutionError(f"{self.path}: {name} is not listed in Manifest.json.")
        return file


class _Weights:
    """Opens each weight file of a package once."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._files: dict[str, WeightFile] = {}

    def __call__(self, name: str) -> WeightFile:
        if name not in self._files:
            self._files[name] = self._package.weight_file(name)
        return self._files[name]


def _read_root(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """The root model's file and all files that belong to it."""
    if path.suffix == ".mlmodelc":
        raise ExecutionError(
            f"{path}: is compiled for one system; give the .mlpackage that it was compiled from."
        )
    if path.suffix == ".mlmodel" and path.is_file():
        return path, (path.with_name("weights"),)
    return _read_manifest(path)


def _read_manifest(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """The root model's file and all listed items, each inside the package's Data folder."""
    manifest = path / "Manifest.json"
    data = _read_bytes(manifest, _MANIFEST_LIMIT)
    try:
        content = json.loads(data)
        root = content["rootModelIdentifier"]
        relative = {key: str(item["path"]) for key, item in content["itemInfoEntries"].items()}
        root_path = relative[root]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ExecutionError(f"{manifest}: not the manifest of a Core ML package.") from None
    items = {key: _inside(path / "Data", item, path) for key, item in relative.items()}
    if not root_path.endswith(".mlmodel"):
        raise ExecutionError(f"{manifest}: the root model is {root_path!r}, expected a .mlmodel.")
    return items[root], tuple(items.values())


def _inside(folder: Path, relative: str, package: Path) -> Path:
    """The existing file or folder at `relative`; refuses paths and links that leave `folder`."""
    parts = PurePosixPath(relative)
    if parts.is_absolute() or not parts.parts or ".." in parts.parts or "\0" in relative:
        raise ExecutionError(f"{package}: the path {relative!r} leads out of the package.")
    found = folder.joinpath(*parts.parts)
    try:
        resolved = found.resolve(strict=True)
        base = package.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ExecutionError(f"{package}: {relative} is missing; copy the whole package.") from None
    if base not in resolved.parents:
        raise ExecutionError(f"{package}: the path {relative!r} leads out of the package.")
    return found


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def read_model(file: Path) -> Any:
    """The protobuf message of a model file. Raises ExecutionError."""
    message = model_message()
    from google.protobuf.message import DecodeError

    data = _read_bytes(file, _MODEL_LIMIT)
    if is_lfs_pointer(data[:64]):
        raise ExecutionError(f"{file}: a Git LFS pointer, not the file itself; run git lfs pull.")
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError):
        raise ExecutionError(f"{file}: not a Core ML model; it is damaged or cut short.") from None
    return message


def _read_bytes(file: Path, limit: int) -> bytes:
    try:
        size = file.stat().st_size
        if not file.is_file() or size > limit:
            raise ExecutionError(f"{file}: expected a file of at most {limit} bytes, got {size}.")
        return file.read_bytes()
    except FileNotFoundError:
        raise ExecutionError(f"{file}: no such file; give the folder of a .mlpackage.") from None
    except OSError as error:
        raise ExecutionError(f"{file}: cannot be read ({error.strerror}).") from None
