"""Finds, checks and describes a saved .mlpackage. Nothing in it is executed before `load`.

Layout: Manifest.json lists the items under Data/, one of them the root model (a protobuf file). The
weights are in files next to the model; the program calls them "@model_path/weights/weight.bin".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mdm_apple.config.strict_json import unknown_name
from mdm_apple.config.types import ExecutorPrecision

from .blob import WeightFile
from .errors import ExecutionError
from .graph import Function, TensorType, read_function
from .program import Program, output_types
from .schema import model_message

_MANIFEST_LIMIT = 1 << 20
_MODEL_LIMIT = 1 << 30  # of the program without its weights
_MODEL_PATH = "@model_path/"


@dataclass(frozen=True)
class Package:
    """A Core ML package with checked files. Make one with `Package.open`.

    inputs, outputs: of the default function. functions: all names. spec_version: 8 for iOS 17.
    """

    path: Path
    functions: tuple[str, ...]
    default_function: str
    spec_version: int
    metadata: dict[str, str]
    _message: Any
    _model_folder: Path
    _items: tuple[Path, ...]
    _read: dict[str, Function]  # functions already read

    @classmethod
    def open(cls, path: Path | str) -> Package:
        """Read and check the package at `path`. Raises ExecutionError."""
        path = Path(path)
        root, items = _read_manifest(path)
        message = _read_model(root)
        program = message.mlProgram
        functions = tuple(sorted(program.functions))
        default = message.description.defaultFunctionName or "main"
        if default not in functions:
            raise ExecutionError(
                f"{path}: its default function {default!r} is missing; it has "
                f"{', '.join(functions) or 'none'}."
            )
        return cls(
            path,
            functions,
            default,
            int(message.specificationVersion),
            dict(message.description.metadata.userDefined),
            message,
            root.parent,
            items,
            {},
        )

    @property
    def inputs(self) -> dict[str, TensorType]:
        return dict(self.function().inputs)

    @property
    def outputs(self) -> dict[str, TensorType]:
        return output_types(self.function())

    def function(self, name: str | None = None) -> Function:
        """The operations of one function. Raises ExecutionError for an unknown name."""
        name = name or self.default_function
        if name not in self.functions:
            raise ExecutionError(
                f"{self.path}: no function {name!r}. {unknown_name(name, self.functions)}"
            )
        if name not in self._read:
            self._read[name] = read_function(name, self._message.mlProgram.functions[name])
        return self._read[name]

    def load(self, function: str | None = None, precision: ExecutorPrecision = "fp32") -> Program:
        """Decode the weights of one function and plan its execution.

        Args:
            precision: "fp32" rounds no activation; "fp16" rounds every fp16-typed value after the
                operation that made it (accumulation inside an operation stays fp32).

        Raises ExecutionError for an unknown function or operation, damaged weights, or a function
        too large for memory.
        """
        return Program(self.function(function), _Weights(self), precision)

    def weight_file(self, name: str) -> WeightFile:
        """Open the weight file that the program calls `name`. Raises ExecutionError."""
        return WeightFile(self.weight_path(name))

    def weight_path(self, name: str) -> Path:
        """Path of the weight file that the program calls `name`. Raises ExecutionError."""
        if not name.startswith(_MODEL_PATH):
            raise ExecutionError(f"{self.path}: weights at {name!r}, expected {_MODEL_PATH}...")
        file = _inside(self._model_folder, name.removeprefix(_MODEL_PATH), self.path)
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


def _read_model(file: Path) -> Any:
    message = model_message()
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(_read_bytes(file, _MODEL_LIMIT))
    except (DecodeError, ValueError):
        raise ExecutionError(f"{file}: not a Core ML model; it is damaged or cut short.") from None
    kind = message.WhichOneof("Type")
    if kind != "mlProgram":
        raise ExecutionError(f"{file}: expected an ML program, got {kind or 'an empty model'}.")
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
