"""The process that reads and runs .aimodel files; `child_process` starts it with `python -m`.

Requests come on stdin and answers go to stdout: a line of JSON, then the arrays that it lists as
raw bytes. A request imports Apple's packages ("import"), loads a function ("path", "function",
"units"), runs a loaded one ("run"), asks what is in a file ("census", "function") or only whether
reading and saving it does any harm ("read").
The arguments are the folder for temporary files, which this process removes when it ends, and the
most bytes of address space (0: no limit). It ends when its parent does, in the middle of a request
as well. Apple's runtime aborts on damaged files.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import select
import shutil
import sys
import tempfile
import threading
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdm_apple.child_limits import confined
from mdm_apple.conversion.coreai.messages import read_message, write_message
from mdm_apple.conversion.errors import ConversionError
from mdm_apple.errors import system_reason


def main() -> None:
    folder, memory = Path(sys.argv[1]), int(sys.argv[2])
    answers = confined(memory)
    threading.Thread(target=_end_with_parent, args=[folder], daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the parent has ended
        asyncio.run(_serve(sys.stdin.buffer, answers))
    shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent(folder: Path) -> None:
    """Wait until nothing can write to stdin any more, then end, whatever is being done."""
    hangup = select.poll()
    hangup.register(0, 0)
    hangup.poll()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


async def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    async with AsyncExitStack() as opened:
        models: dict[str, Any] = {}
        loaded: list[Any] = []
        while (request := read_message(requests)) is not None:
            header, arrays = request
            try:
                if "path" in header:
                    path = str(header["path"])
                    if path not in models:
                        models[path] = await opened.enter_async_context(_opened(header))
                    loaded.append(models[path].load_function(str(header["function"])))
                    write_message(answers, {"loaded": len(loaded) - 1}, {})
                elif "import" in header:
                    _import_packages()
                    write_message(answers, {}, {})
                elif "census" in header:
                    write_message(answers, {"census": _census(header)}, {})
                elif "read" in header:
                    _read(Path(str(header["read"])))
                    write_message(answers, {}, {})
                else:
                    write_message(answers, {}, await _run(loaded[int(header["run"])], arrays))
            except BrokenPipeError:
                raise
            except ImportError as error:
                write_message(answers, {"missing": str(error)}, {})
            except ConversionError as error:
                write_message(answers, {"refusal": str(error)}, {})
            except Exception as error:  # whatever a strange file leads to is a refusal
                lines = str(error).strip().splitlines() or [type(error).__name__]
                write_message(answers, {"error": lines[0]}, {})


def _census(header: dict[str, Any]) -> dict[str, Any]:
    """Nothing is compiled or run for this."""
    from mdm_apple.conversion.coreai.census import census
    from mdm_apple.conversion.coreai.program import read_program

    return asdict(census(read_program(Path(str(header["census"]))), header["function"]))


def _read(path: Path) -> None:
    """Read and save what a parent would: the graphs, their weights and every stored number."""
    from mdm_apple.conversion.coreai.program import constants, read_program
    from mdm_apple.conversion.coreai.seal import save
    from mdm_apple.conversion.coreai.weights import end_convolutions, weights_of

    program = read_program(path)
    for constant in constants(program):
        constant.read()
    weights_of(program)
    end_convolutions(program)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            save(program, folder / path.name)
        except OSError as error:
            raise ConversionError(
                f"{path.name}: is tried out in the folder for temporary files, which takes no "
                f"more; {system_reason(error)}"
            ) from error


def _import_packages() -> None:
    """All that a load and a run would import."""
    for name in ("coreai.authoring.asset", "coreai.runtime._ndarray"):
        importlib.import_module(name)


def _opened(header: dict[str, Any]) -> Any:
    from coreai.authoring.asset import AIModelAsset
    from coreai.runtime import SpecializationOptions

    asset = AIModelAsset.load(Path(str(header["path"])))
    units = header.get("units")
    if units is None:
        return asset.executable()
    options = SpecializationOptions
    if units == "cpuOnly":
        return asset.executable(options.cpu_only())
    if units == "all":
        return asset.executable(options.default())
    from coreai.runtime import ComputeUnitKind

    kind = ComputeUnitKind.gpu() if units == "cpuAndGPU" else ComputeUnitKind.neural_engine()
    return asset.executable(options.from_preferred_compute_unit_kind(kind))


async def _run(function: Any, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs by name: their order in the dictionary differs from run to run."""
    from coreai.runtime._ndarray import NDArray as RuntimeArray

    description = function.desc
    inputs: dict[str, Any] = {}
    for name in description.input_names:
        dtype = description.input_descriptor(name).dtype
        if name not in given:
            raise ValueError(f"it takes {name}, which the bundle does not list for it")
        inputs[name] = RuntimeArray(np.ascontiguousarray(given[name], dtype))
    found = await function(inputs)
    return {name: np.ascontiguousarray(found[name].numpy()) for name in description.output_names}


if __name__ == "__main__":
    main()
