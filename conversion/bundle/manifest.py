"""What a bundle says about itself: `manifest.json`, the only file an app must read first.

Enters and leaves: strict JSON, held to manifest.schema.json (draft 2020-12), which the Swift side
tests against as well. The digest is the SHA-256 of the canonical JSON (sorted keys, no spaces,
UTF-8) without the digest itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from mdm_apple.config.model import Prediction, Provenance, Threshold
from mdm_apple.config.strict_json import from_json
from mdm_apple.config.types import ComputeUnits, Layout, Target
from mdm_apple.errors import ConfigError, require

from ..errors import BundleError
from ..layouts.parts import Phase

SCHEMA_VERSION = 1
NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Feature:
    """Input or output of a package."""

    name: str
    dtype: Literal["fp16", "fp32", "int32"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PackageInfo:
    """One .mlpackage, or the function of this name in one that several entries have as path.

    phase: runs once per text, once per prompt, or once per step.

    side: of the level that it belongs to; it is left out where sampling stops at a smaller one.
    null: it always runs. In layout multifunction, the one entry runs at whose side sampling stops.
    weight_bits: of its palettized weights, 16 where none are. activation_bytes: the most that
    values in their declared types occupy at once, weights apart.
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
    """Of all packages together, each counted once however many functions it has."""
    return sum({p.path: p.bytes for p in packages}.values())


@dataclass(frozen=True)
class PeakMemory:
    """Predicted bytes. resident: all packages stay loaded; staged: those of one phase at a time.

    minimal: one package at a time.
    """

    resident: int
    staged: int
    minimal: int


@dataclass(frozen=True)
class LevelInfo:
    """One level of the nest. image, temb, prediction are feature names, the others tables.

    `temb` is the row of `time`, plus those of `target_time` and `guidance` for a student, plus the
    pooled text. features: what the level above adds, which is zero where sampling stops at this
    one; null where there is no such input. image_scale: a sampled x0 times this is a picture in
    [-1, 1].
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
    """A distilled model: jumps instead of steps, with one evaluation each and no guidance of two.

    starts: table indices that it jumps from, noisiest first; it takes as many steps as divide their
    number. targets: the indices to which the rows of the levels' `target_time` tables belong.
    weights: guidance weights of the rows of their `guidance` tables; empty without text.
    """

    starts: tuple[int, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class TextInfo:
    """How prompts become features. encoder, tokenizer: null where features come from a cache."""

    max_tokens: int
    width: int
    lowercase: bool
    encoder: str | None
    tokenizer: str | None
    source: str | None
    tokenizer_sha256: str | None


@dataclass(frozen=True)
class SamplerInfo:
    """The default sampler and the numbers of steps that are allowed."""

    kind: Literal["ddpm", "ddim", "dpmpp", "student"]
    steps: int
    minimum_steps: int
    maximum_steps: int


@dataclass(frozen=True)
class GoldenInfo:
    """What the golden record was made with. text: where its text comes from; null without text."""

    path: str
    prompts: tuple[str, ...]
    text: str | None
    seed: int
    sampler: str
    steps: int
    times: tuple[int, ...]


@dataclass(frozen=True)
class FileInfo:
    """A file of the bundle; path relative to it, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """See the fields' own types; packages are listed in the order in which they run."""

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


def digest_of(manifest: Manifest) -> str:
    """SHA-256 of everything but the digest."""
    data = dataclasses.asdict(manifest)
    del data["digest"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(manifest: Manifest) -> bytes:
    """The text of manifest.json with its digest filled in, checked against the schema."""
    text = _text(dataclasses.replace(manifest, digest=digest_of(manifest)))
    _check_schema(json.loads(text), "manifest.json")
    return text.encode()


def read_manifest(text: str, where: str) -> Manifest:
    """Parse and check manifest.json. Raises BundleError with the first thing that is wrong."""
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{where}: not valid JSON; the bundle is damaged.") from None
    fields = cast("dict[str, object]", data) if isinstance(data, dict) else {}
    if fields.get("schema") != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: has schema {fields.get('schema')!r}, this version reads {SCHEMA_VERSION}; "
            "install the mdm-apple that made the bundle."
        )
    _check_schema(fields, where)
    try:
        manifest = from_json(Manifest, text, where)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if manifest.digest != digest_of(manifest) or text != _text(manifest):
        raise BundleError(f"{where}: does not match its digest; it was altered after it was made.")
    return manifest


def _text(manifest: Manifest) -> str:
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


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
        raise BundleError(f"{where}: {place} is not as the schema has it ({message}).")
