"""Converts a model into a bundle: captures each part, lowers it to fp16 and saves it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.config.strict_json import to_json
from mdm_apple.config.types import Target
from mdm_apple.errors import MdmError, require_coreai
from mdm_apple.storage.tensorfile import write_bytes

from .bundle.clips import check_clip
from .bundle.embedding_tables import write_tables
from .bundle.folder import Bundle, bundle_folder, finish_bundle
from .bundle.golden import write_golden
from .bundle.make_manifest import core_ml_package, describe
from .coreai.packages import write_packages
from .coreml import quiet_coremltools
from .errors import ConversionError
from .layouts.choose import fitting_compute, parts_of
from .layouts.parts import Part
from .limits import LARGEST_FP16
from .package_file.compact import compact_package
from .package_file.merge import merge_packages
from .package_file.seal import package_size, seal_package
from .package_file.split import split_to_fit
from .source.model import ModelSource


def convert(
    source: ModelSource,
    out: Path,
    options: ConvertOptions | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write the bundle of a model to `out`, which appears whole or not at all.

    Raises ConversionError if the format cannot express the model, BundleError if `out` exists,
    MissingPackageError if Core AI's packages are missing.
    """
    options = options or ConvertOptions()
    if options.format == "coreai":
        require_coreai(", or leave out --format coreai")
    check_clip(source.config)
    compute = options.compute or fitting_compute(source.config, options.layout)
    parts = parts_of(source, options.layout, compute)
    for part in parts:
        _check_range(part)
    with bundle_folder(out, overwrite) as folder:
        write_bytes(folder / "config.json", to_json(source.config).encode())
        if source.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            write_bytes(folder / "tokenizer" / "tokenizer.model", source.tokenizer)
        if options.format == "coreai":
            rights = source.config.provenance.license
            packages = write_packages(parts, folder, rights, options.max_package_mb, say)
        else:
            made = core_ml_parts(parts, folder, source, options, say)
            packages = [core_ml_package(folder, part) for part in made]
        say("tables and golden record")
        write_tables(folder, source)
        golden = write_golden(folder, source)
        finish_bundle(folder, describe(source, tuple(packages), golden, options))
    return Bundle.open(out)


def core_ml_parts(
    parts: Sequence[Part],
    folder: Path,
    source: ModelSource,
    options: ConvertOptions,
    say: Callable[[str], None],
) -> list[Part]:
    """Save every part as a .mlpackage; returns them, or the pieces they were split into."""
    made: list[Part] = []
    for part in parts:
        say(f"{part.name}: capturing and lowering")
        convert_part(part, folder / f"{part.name}.mlpackage", options.oldest_system, source)
        if part.package is None:
            made += within_limit(part, folder, options.max_package_mb, source)
    functions = [part for part in parts if part.package is not None]
    if functions:
        made += merged(functions, folder, options.max_package_mb, source)
    return made


def merged(functions: list[Part], folder: Path, limit_mb: float, source: ModelSource) -> list[Part]:
    """Merge the parts' packages into functions of one; the last part is the default function."""
    target, default = folder / f"{functions[-1].file_stem}.mlpackage", functions[-1].name
    separate = {part.name: folder / f"{part.name}.mlpackage" for part in functions}
    merge_packages(separate, target, default)
    for path in separate.values():
        shutil.rmtree(path)
    seal_package(target, target.stem, source.config.provenance.license)
    size = package_size(target)
    if size > limit_mb * 1e6:
        raise ConversionError(
            f"{target.name}: is {size / 1e6:.0f} MB and cannot be split, because its functions "
            "share their weights; raise --max-package-mb or use --layout nested."
        )
    return functions


def within_limit(part: Part, folder: Path, limit_mb: float, source: ModelSource) -> list[Part]:
    """The part, or the pieces its package was split into."""
    names = split_to_fit(folder, part.name, limit_mb, source.config.provenance.license)
    return [dataclasses.replace(part, name=name) for name in names]


def convert_part(part: Part, path: Path, target: Target, source: ModelSource) -> None:
    """Save one part as a package. Raises ConversionError."""
    try:
        with quiet_coremltools() as coremltools:
            program = capture(part)
            model = _lower(coremltools, program, part, target)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                saved = Path(scratch) / path.name
                _save(model, saved)
                saved.rename(path)
    except MdmError:  # a refusal from below says itself what is wrong
        raise
    except (NotImplementedError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "[MIL FileWriter]" in reason:  # coremltools names no other reason for a refused write
            raise ConversionError(
                f"{part.name}: cannot be written; the disk is full or a file size limit is "
                "reached; free space and try again."
            ) from error
        raise ConversionError(f"{part.name}: cannot be converted to Core ML ({reason}).") from error
    if source.config.frames > 1:
        compact_package(path)
    seal_package(path, part.name, source.config.provenance.license)


def _save(model: Any, path: Path) -> None:
    """coremltools copies what it made, and then raises a list of all files that failed."""
    try:
        model.save(str(path))
    except shutil.Error as error:
        found = re.search(r"\[Errno ([0-9]+)\]", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from error


def _check_range(part: Part) -> None:
    """fp16 ends at 65504; a larger weight would silently become infinite."""
    for name, weight in part.module.named_parameters():
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        if not largest <= LARGEST_FP16:
            raise ConversionError(
                f"{part.name}: the weight {name} reaches {largest:g}, which fp16 cannot hold; "
                "train the model further or clip it."
            )


def capture(part: Part) -> torch.export.ExportedProgram:
    """The graph of a part in operations that coremltools knows."""
    with torch.no_grad():
        program = torch.export.export(part.module.eval(), tuple(part.inputs.values()), strict=False)
        return program.run_decompositions({torch.ops.aten.addcmul.default: _addcmul})


def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """coremltools cannot translate torch's fused form."""
    return x + a * b if value == 1 else x + value * (a * b)


def _lower(coremltools: Any, program: Any, part: Part, target: Target) -> Any:
    inputs = [
        coremltools.TensorType(
            name=name,
            shape=tuple(value.shape),
            dtype=np.float16 if value.is_floating_point() else np.int32,
        )
        for name, value in part.inputs.items()
    ]
    return coremltools.convert(
        program,
        inputs=inputs,
        outputs=[coremltools.TensorType(name=n, dtype=np.float16) for n in part.outputs],
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT16,
        minimum_deployment_target=getattr(coremltools.target, target),
        skip_model_load=True,
    )
