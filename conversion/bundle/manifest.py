"""A bundle's description of itself: `manifest.json`, the file an app reads first.

Enters and leaves: strict JSON, checked against manifest.schema.json (draft 2020-12), which the
Swift side tests against as well. The digest is the SHA-256 of the canonical JSON (sorted keys, no
spaces, UTF-8) without the digest itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from mdm_apple.config.model import NullPrompt, Padding, Prediction, Provenance, Threshold
from mdm_apple.config.strict_json import (
    ADDED_LATER,
    as_values,
    from_json,
    later_fields,
    to_json,
)
from mdm_apple.config.types import ComputeUnits, Format, Layout, Target
from mdm_apple.errors import ConfigError, require

from ..errors import BundleError
from ..layouts.parts import Phase

SCHEMA_VERSIONS = (1, 2)  # 2 if a field is used that installed readers of 1 do not know
SUFFIXES: dict[Format, str] = {"coreml": ".mlpackage", "coreai": ".aimodel"}
PROGRAM, PROGRAM_HASH = "main.mlirb", "main.hash"  # in an .aimodel
NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Feature:
    """An input or output of a package."""

    name: str
    dtype: Literal["fp16", "fp32", "int32"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PackageInfo:
    """One .mlpackage or .aimodel, or its function of this name where entries share the path.

    phase: runs once per text, once per prompt, or once per step.

    side: the level the package belongs to; sampling that stops at a smaller level skips it. null:
    it always runs. In layout multifunction, only the entry for the side where sampling stops runs.
    weight_bits: of the palettized weights, or 16 if there are none. activation_bytes: the most
    memory that values in their declared types occupy at once, without weights.
    """

    name: str
    path: str
    phase: Phase
    side: int | None
    precision: Literal["fp16"]
    weight_bits: int
    compute: ComputeUnits
    bytes: int
    activation_bytes: int
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]


def package_bytes(packages: Iterable[PackageInfo]) -> int:
    """Total size of all packages, each counted once however many functions it has."""
    return sum({p.path: p.bytes for p in packages}.values())


@dataclass(frozen=True)
class PeakMemory:
    """Predicted bytes. resident: all packages stay loaded; staged: one phase is loaded at a time.

    minimal: one package is loaded at a time.
    """

    resident: int
    staged: int
    minimal: int


@dataclass(frozen=True)
class LevelInfo:
    """One level of the nest. image, temb and prediction are feature names, the others tables.

    `temb` is the row of `time`, plus the rows of `target_time` and `guidance` for a student, plus
    the pooled text. features: the input from the level above, zero where sampling stops at this
    level; null if there is no such input. image_scale: multiplying a sampled x0 by it gives a
    picture in [-1, 1].
    """

    side: int
    image: str
    temb: str
    prediction: str
    features: str | None
    alpha_bar: str
    time: str
    target_time: str | None
    guidance: str | None
    image_scale: float


@dataclass(frozen=True)
class StudentInfo:
    """A distilled model: it jumps instead of stepping, one evaluation per jump, guided or not.

    starts: table indices it jumps from, noisiest first; the number of steps must divide their
    number. targets: table indices for the rows of the levels' `target_time` tables. weights:
    guidance weights for the rows of the levels' `guidance` tables; empty without text.
    """

    starts: tuple[int, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class TextInfo:
    """How prompts become features. encoder, tokenizer: null if features come from a cache.

    padding, null_prompt: see `TextConfig`.
    """

    max_tokens: int
    width: int
    lowercase: bool
    encoder: str | None
    tokenizer: str | None
    source: str | None
    tokenizer_sha256: str | None
    padding: Padding = field(default="max_tokens", metadata=ADDED_LATER)
    null_prompt: NullPrompt = field(default="end", metadata=ADDED_LATER)


@dataclass(frozen=True)
class VideoInfo:
    """A model of clips, whose levels are squares of frames, tiled row by row.

    frames: of each level, highest first; a frame is `side` / sqrt(frames) pixels wide and high.
    fps: frames a second. key_frame: the frame that the levels of one frame show.
    """

    frames: tuple[int, ...]
    fps: int
    key_frame: int


@dataclass(frozen=True)
class SizeInfo:
    """A size that the packages take besides that of the levels, in pixels of level 0."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter whose functions the packages have; sha256 of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class SamplerInfo:
    """The default sampler and the allowed numbers of steps."""

    kind: Literal["ddpm", "ddim", "dpmpp", "student"]
    steps: int
    minimum_steps: int
    maximum_steps: int


@dataclass(frozen=True)
class GoldenInfo:
    """Settings of the golden record. text: where its text comes from; null without text."""

    path: str
    prompts: tuple[str, ...]
    text: str | None
    seed: int
    sampler: str
    steps: int
    times: tuple[int, ...]


@dataclass(frozen=True)
class FileInfo:
    """A file of the bundle; the path is relative to the bundle, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """See the types of the fields; packages are listed in the order in which they run.

    format: of the packages. video: null for pictures. sizes, adapters: functions of the packages by
    their names, besides the plain one.
    """

    schema: int
    digest: str
    layout: Layout
    variant: str
    target: Target
    levels: tuple[LevelInfo, ...]
    num_steps: int
    alpha_bar: str
    tables: str
    config: str
    prediction: Prediction
    threshold: Threshold
    guidance: Literal["cfg", "embedded", "none"]
    sampler: SamplerInfo
    student: StudentInfo | None
    text: TextInfo | None
    packages: tuple[PackageInfo, ...]
    peak_memory: PeakMemory
    golden: GoldenInfo
    provenance: Provenance
    versions: dict[str, str]
    created: str | None
    files: tuple[FileInfo, ...]
    format: Format = field(default="coreml", metadata=ADDED_LATER)
    video: VideoInfo | None = field(default=None, metadata=ADDED_LATER)
    sizes: tuple[SizeInfo, ...] = field(default=(), metadata=ADDED_LATER)
    adapters: tuple[AdapterInfo, ...] = field(default=(), metadata=ADDED_LATER)


def schema_of(manifest: Manifest) -> int:
    """The oldest schema that has all the fields in use."""
    text = manifest.text
    return 2 if later_fields(manifest) or (text and later_fields(text)) else 1


def digest_of(manifest: Manifest) -> str:
    """SHA-256 of everything but the digest."""
    data = as_values(manifest)
    del data["digest"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(manifest: Manifest) -> bytes:
    """The text of manifest.json with its schema and digest, checked against the JSON Schema."""
    manifest = dataclasses.replace(manifest, schema=schema_of(manifest))
    text = to_json(dataclasses.replace(manifest, digest=digest_of(manifest)))
    _check_schema(json.loads(text), "manifest.json")
    return text.encode()


def read_manifest(text: str, where: str) -> Manifest:
    """Parse and check manifest.json. Raises BundleError for the first fault."""
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{where}: not valid JSON; the bundle is damaged.") from None
    fields = cast("dict[str, object]", data) if isinstance(data, dict) else {}
    if fields.get("schema") not in SCHEMA_VERSIONS:
        raise BundleError(
            f"{where}: has schema {fields.get('schema')!r}, but this version reads "
            f"{' and '.join(map(str, SCHEMA_VERSIONS))}; install the mdm-apple that made it."
        )
    _check_schema(fields, where)
    try:
        manifest = from_json(Manifest, text, where)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if manifest.digest != digest_of(manifest) or text != to_json(manifest):
        raise BundleError(f"{where}: does not match its digest; it was altered after it was made.")
    for package in manifest.packages:
        if not package.path.endswith(SUFFIXES[manifest.format]):
            raise BundleError(
                f"{where}: names {package.path}, but its format is {manifest.format}; convert the "
                "model again."
            )
    later = [name for name in later_fields(manifest) if name not in ("format", "video")]
    if later:  # this version has a runtime for none of them
        raise BundleError(
            f"{where}: uses {later[0]}, which this version cannot run; install the mdm-apple that "
            "made the bundle."
        )
    return manifest


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of manifest.json."""
    return json.loads(Path(__file__).with_name("manifest.schema.json").read_text(encoding="utf-8"))


def _check_schema(data: object, where: str) -> None:
    jsonschema = require("jsonschema")
    error = next(jsonschema.Draft202012Validator(schema()).iter_errors(data), None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        message = error.message if len(error.message) < 120 else error.message[:117] + "..."
        raise BundleError(f"{where}: {place} does not match the schema ({message}).")
