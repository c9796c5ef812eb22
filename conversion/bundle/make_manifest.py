"""Builds the manifest of a new bundle from the model and the saved packages."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import Literal

import numpy
import torch

from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.config.types import Format
from mdm_apple.diffusion.prediction import image_scale
from mdm_apple.errors import MdmError
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.version import __version__

from ..execute import Package, TensorType
from ..execute.graph import Function
from ..execute.liveness import peak_bytes
from ..execute.program import output_types
from ..layouts.names import (
    BASE_TABLE,
    alpha_bar_name,
    features_name,
    guidance_name,
    image_name,
    prediction_name,
    target_time_name,
    temb_name,
    time_name,
)
from ..layouts.parts import Part
from ..package_file.seal import package_size
from ..source.model import ModelSource
from .clips import clip_of
from .embedding_tables import TABLES, student_targets, student_weights
from .manifest import (
    NO_DIGEST,
    SCHEMA_VERSIONS,
    SUFFIXES,
    Feature,
    GoldenInfo,
    LevelInfo,
    Manifest,
    PackageInfo,
    SamplerInfo,
    StudentInfo,
    TextInfo,
)
from .memory import peak_memory

_FEATURE_TYPES: dict[str, Literal["fp16", "fp32", "int32"]] = {
    "fp16": "fp16",
    "fp32": "fp32",
    "int32": "int32",
}


def describe(
    source: ModelSource,
    packages: tuple[PackageInfo, ...],
    golden: GoldenInfo,
    options: ConvertOptions,
) -> Manifest:
    """Everything but the file list and the digest, which are added when the folder is finished."""
    config = source.config
    diffusion, num_steps = config.diffusion, config.diffusion.schedule.num_steps
    default, student = SamplerConfig(), _student(source)
    return Manifest(
        schema=SCHEMA_VERSIONS[0],
        digest=NO_DIGEST,
        layout=options.layout,
        variant="fp16",
        target=options.oldest_system,
        levels=_levels(source, options.layout == "nested"),
        num_steps=num_steps,
        alpha_bar=BASE_TABLE,
        tables=TABLES,
        config="config.json",
        prediction=diffusion.prediction,
        threshold=diffusion.threshold,
        guidance="none" if config.text is None else "embedded" if student else "cfg",
        sampler=SamplerInfo("student", 1, 1, len(student.starts))
        if student
        else SamplerInfo("ddim", min(default.num_steps or 1, num_steps), 1, num_steps),
        student=student,
        text=_text(source),
        packages=packages,
        peak_memory=peak_memory(packages),
        golden=golden,
        provenance=config.provenance,
        versions=_versions(options.format),
        created=_created(),
        files=(),
        format=options.format,
        video=clip_of(config),
    )


def core_ml_package(folder: Path, part: Part) -> PackageInfo:
    """The entry of a part that was saved as a .mlpackage."""
    return described_again(folder, new_entry(part, "coreml"), 16)


def new_entry(part: Part, package_format: Format) -> PackageInfo:
    """The entry of a part as it is known before the file is read."""
    return PackageInfo(
        name=part.name,
        path=f"{part.file_stem}{SUFFIXES[package_format]}",
        phase=part.phase,
        side=part.side,
        precision="fp16",
        weight_bits=16,
        compute="cpuAndNeuralEngine" if part.compute == "ane" else "cpuAndGPU",
        bytes=0,
        activation_bytes=0,
        inputs=(),
        outputs=(),
    )


def described_again(folder: Path, info: PackageInfo, weight_bits: int) -> PackageInfo:
    """The entry of a package in the folder, updated with the facts in its file."""
    path = folder / info.path
    function = function_of(Package.open(path), info.name)
    return dataclasses.replace(
        info,
        weight_bits=weight_bits,
        bytes=package_size(path),
        activation_bytes=peak_bytes(function),
        inputs=_features(function.inputs),
        outputs=_features(output_types(function)),
    )


def function_of(package: Package, name: str) -> Function:
    """The function an entry refers to: the one of its name, else the only one."""
    return package.function(name if name in package.functions else None)


def _features(types: dict[str, TensorType]) -> tuple[Feature, ...]:
    return tuple(Feature(n, _FEATURE_TYPES[t.dtype], t.shape) for n, t in types.items())


def _levels(source: ModelSource, nested: bool) -> tuple[LevelInfo, ...]:
    config = source.config
    return tuple(
        LevelInfo(
            side=side,
            image=image_name(side),
            temb=temb_name(side),
            prediction=prediction_name(side),
            features=features_name(side) if nested and i > 0 else None,
            alpha_bar=alpha_bar_name(side),
            time=time_name(side),
            target_time=target_time_name(side) if config.distilled else None,
            guidance=guidance_name(side)
            if config.distilled and config.distilled.guidance
            else None,
            image_scale=image_scale(config.diffusion, config.model.scales, i),
        )
        for i, side in enumerate(config.sides)
    )


def _student(source: ModelSource) -> StudentInfo | None:
    distilled = source.config.distilled
    if distilled is None:
        return None
    return StudentInfo(distilled.starts, student_targets(distilled), student_weights(distilled))


def _text(source: ModelSource) -> TextInfo | None:
    text = source.config.text
    if text is None:
        return None
    return TextInfo(
        max_tokens=text.max_tokens,
        width=source.config.model.innermost.text_dim or 0,
        lowercase=text.lowercase,
        encoder="text_encoder" if source.encoder else None,
        tokenizer="tokenizer/tokenizer.model" if source.tokenizer else None,
        source=text.source,
        tokenizer_sha256=_sha256(source.tokenizer) or text.tokenizer_sha256,
        padding=text.padding,
        null_prompt=text.null_prompt,
    )


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _versions(form: Format) -> dict[str, str]:
    versions = {"mdm_apple": __version__}
    for package in ("coreai-core", "coreai-torch") if form == "coreai" else ("coremltools",):
        versions[package] = importlib.metadata.version(package)
    return versions | {"torch": str(torch.__version__), "numpy": numpy.__version__}


def _created() -> str | None:
    """The date in SOURCE_DATE_EPOCH; None without it, so that bundles do not depend on time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return None
    if not epoch.isdigit() or int(epoch) > 1 << 36:
        raise MdmError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {epoch[:40]!r}.")
    return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).isoformat()
