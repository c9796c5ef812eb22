"""The constants of a Core AI program: reading, naming and replacing them.

A constant lies in the file as a named buffer. Names here are functions of the bytes, because those
that coreai gives depend on addresses in memory.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdm_apple.errors import require_coreai

from ..bundle.manifest import PROGRAM_HASH
from ..execute import ExecutionError
from .child_process import READ_SECONDS, Child, ChildEndedError
from .wheels import quiet

COMPILER = "coreai._compiler._mlir_libs._coreaiIR._bindings.compiler"
RESOURCE = "dense_resource<"
OPERATION_BYTES, FILE_BYTES = 200, 1 << 16  # about ten times what is measured


@dataclass(frozen=True)
class Constant:
    """A constant operation that is stored as a buffer. dtype: as MLIR writes it, e.g. f16."""

    operation: Any
    name: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, operation: Any) -> Constant | None:
        """The constant that an operation is; None if it is another or has no buffer."""
        from coreai._compiler.ir import DenseResourceElementsAttr, RankedTensorType

        if operation.operation.name != "coreai.constant":
            return None
        value = operation.attributes["value"]
        if not DenseResourceElementsAttr.isinstance(value):
            return None
        kind = RankedTensorType(operation.results[0].type)
        name = str(value).removeprefix(RESOURCE).split(">")[0].strip('"')
        return cls(operation, name, tuple(kind.shape), str(kind.element_type))

    def read(self) -> NDArray[np.uint8]:
        """The stored bytes."""
        out = np.empty(stored_bytes(self.shape, self.dtype), np.uint8)
        compiler = importlib.import_module(COMPILER)
        compiler.copy_constant_value_to_array(constant_op=self.operation.operation, destination=out)
        return out


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a buffer whose numbers of `dtype` (f16, ui3) are packed without gaps."""
    found = re.search("[0-9]+", dtype)  # f8E4M3 has 8
    return -(-math.prod(shape) * int(found[0] if found else 0) // 8)


def open_program(path: Path) -> Any:
    """The program of an .aimodel whose hash was compared, once a child has read and saved it.

    Raises ExecutionError if the child refused it or ended, MissingPackageError if Core AI's
    packages are missing.
    """
    require_coreai()
    _try_in_child(path, (path / PROGRAM_HASH).read_bytes())
    return read_program(path)


@lru_cache(maxsize=256)
def _try_in_child(path: Path, _: bytes) -> None:
    """Once for each content: a package is opened several times, and a child starts in a second."""
    child = Child()
    try:
        child.ask(path, {"read": str(path.resolve())}, {}, READ_SECONDS)
    except ChildEndedError as ended:
        raise ExecutionError(f"{path.name}: {ended}") from None
    finally:
        child.end()


def read_program(path: Path) -> Any:
    """The program of an .aimodel, read in this process, which ends if the file is damaged.

    Raises MissingPackageError if Core AI's packages are missing.
    """
    with quiet("coreai.authoring.asset"):
        from coreai.authoring.asset import AIModelAsset

        return AIModelAsset.load(path).program


@contextmanager
def editing(program: Any) -> Generator[None]:
    """Types, attributes and operations made in the block belong to the program, from no source."""
    from coreai._compiler.ir import Location

    with program._module._mlir_module.context, Location.unknown():
        yield


def functions(program: Any) -> Iterator[Any]:
    """Every graph of a program, private ones included."""
    for operation in program._module._mlir_module.body.operations:
        if operation.operation.name == "coreai.graph":
            yield operation


def is_private(graph: Any) -> bool:
    """Whether only other graphs can call it: a composite, or a piece that functions share."""
    return "priv" in graph.operation.attributes


def graph_name(graph: Any) -> str:
    return graph.operation.attributes["sym_name"].value


def operations(graph: Any) -> Iterator[Any]:
    """The operations of a graph, and of the regions inside them."""
    pending = [iter(graph.regions[0].blocks[0].operations)]
    while pending:
        for operation in pending[-1]:
            yield operation
            inner = [iter(b.operations) for region in operation.regions for b in region.blocks]
            if inner:
                pending += inner
                break
        else:
            pending.pop()


def constants(program: Any) -> Iterator[Constant]:
    """The constants stored as buffers; small ones are part of the program's text."""
    for graph in functions(program):
        for operation in operations(graph):
            constant = Constant.of(operation)
            if constant is not None:
                yield constant


def most_bytes(program: Any) -> int:
    """More bytes than its file takes: its buffers, each once, and its operations."""
    buffers = {c.name: stored_bytes(c.shape, c.dtype) for c in constants(program)}
    count = sum(1 for graph in functions(program) for _ in operations(graph))
    return sum(buffers.values()) + count * OPERATION_BYTES + FILE_BYTES


def name_constants(program: Any, known: dict[str, str]) -> None:
    """Give each buffer a name that depends on its bytes alone; equal buffers become one.

    Args:
        known: names by the SHA-256 of the bytes, for weights that have one.
    """
    from coreai._compiler.ir import DenseResourceElementsAttr

    made: dict[tuple[str, str], Any] = {}
    with editing(program):
        for constant in list(constants(program)):
            data = constant.read()
            digest = hashlib.sha256(data.data).hexdigest()
            kind = constant.operation.results[0].type
            key = digest, str(kind)
            if key not in made:
                name = known.get(digest, f"constant_{digest[:16]}")
                made[key] = DenseResourceElementsAttr.get_from_buffer(data.data, name, kind)
            constant.operation.attributes["value"] = made[key]
