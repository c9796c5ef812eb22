"""Writes the parts of a layout as .aimodel folders, and their entries for the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mdm_apple.config.types import ExecutorPrecision
from mdm_apple.errors import MdmError

from ..bundle.make_manifest import new_entry
from ..bundle.manifest import SUFFIXES, PackageInfo
from ..errors import ConversionError
from ..layouts.parts import Part
from ..package_file.seal import package_size
from .lower import Lowered, lower
from .program import name_constants
from .seal import save_sealed
from .weight_names import names_by_digest


def write_packages(
    parts: Sequence[Part],
    folder: Path,
    license_text: str | None,
    limit_mb: float,
    say: Callable[[str], None] = lambda _: None,
) -> list[PackageInfo]:
    """Save every part, those that share a package as its functions; entries in running order.

    Raises ConversionError if Core AI cannot express a part, or if a package exceeds `limit_mb`.
    """
    entries: dict[str, PackageInfo] = {}
    for stem in dict.fromkeys(part.file_stem for part in parts):
        shared = [part for part in parts if part.file_stem == stem]
        say(f"{stem}: capturing and lowering")
        path = folder / f"{stem}{SUFFIXES['coreai']}"
        lowered = write_package(shared, path, license_text)
        size = package_size(path)
        if size > limit_mb * 1e6:
            raise ConversionError(
                f"{path.name}: is {size / 1e6:.0f} MB, and Core AI packages are not split; raise "
                "--max-package-mb, or convert with --format coreml."
            )
        entries |= {one.part.name: _entry(one, size) for one in lowered}
    return [entries[part.name] for part in parts]


def write_package(
    parts: Sequence[Part],
    path: Path,
    license_text: str | None,
    precision: ExecutorPrecision = "fp16",
    as_core_ml: bool = False,
) -> list[Lowered]:
    """Save parts as the functions of one .aimodel; see `lower`. Raises ConversionError."""
    try:
        program, lowered = lower(parts, precision, as_core_ml)
        name_constants(program, names_by_digest({one.part.name: one.weights for one in lowered}))
    except MdmError:  # a refusal from below says itself what is wrong
        raise
    except (NotImplementedError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConversionError(f"{path.stem}: cannot be converted to Core AI ({reason}).") from error
    save_sealed(program, path, license_text)
    return lowered


def _entry(lowered: Lowered, size: int) -> PackageInfo:
    return dataclasses.replace(
        new_entry(lowered.part, "coreai"),
        bytes=size,
        activation_bytes=lowered.activation_bytes,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
    )
