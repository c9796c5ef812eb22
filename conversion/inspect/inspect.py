"""The contents of a model or bundle: parameters per level, operations and bytes per package."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mdm_apple.config.model import ModelConfig, NullPrompt, Padding, Provenance
from mdm_apple.config.network import T5Config
from mdm_apple.config.shapes import encoder_shapes, state_shapes
from mdm_apple.diffusion.canvas import frame_side

from ..bundle.folder import Bundle
from ..bundle.make_manifest import function_of
from ..bundle.manifest import PackageInfo, PeakMemory
from ..coreai.census import Census
from ..coreai.runtime import AppleRuntime
from ..execute import Package
from ..execute.graph import Function
from ..package_file.cost import CHIPS, cost_of
from ..package_file.split import CutPoint, cut_points
from ..package_file.weights import weights_of
from . import asset
from .lint import RULES, Finding, Rule, count_by_rule, lint

INNER = "inner_unet."
SHOWN = 5  # lint findings named one by one


@dataclass(frozen=True)
class LevelSize:
    """Parameters of one level, without the levels inside it; frames: of a clip, 1 for pictures."""

    side: int
    parameters: int
    frames: int = 1

    @property
    def frame_side(self) -> int:
        """Pixels on a side of one frame; `side` is that of all frames, tiled in a square."""
        return frame_side(self.side, self.frames)


@dataclass(frozen=True)
class PackageCensus:
    """operations: count of each kind, without constants. parameters: see `parameters_of`.

    plain_weights, compressed_weights: counts. findings: lint findings by rule; errors: findings
    that keep operations off the Neural Engine (the package may not be meant for it). flops,
    traffic, weight_bytes: see cost.Cost. estimated_ms: an estimate by chip. cuts: where the package
    could be halved. These five are None for Core AI, and computed, stored for Core ML: counts of
    results, and bytes of stored constants, by type.
    """

    name: str
    path: str
    phase: str
    bytes: int
    precision: str
    weight_bits: int
    activation_bytes: int
    operations: dict[str, int]
    parameters: int
    plain_weights: int
    compressed_weights: int
    for_neural_engine: bool
    findings: dict[str, int]
    errors: int
    first_errors: tuple[Finding, ...]
    flops: int | None
    traffic: int | None
    weight_bytes: int | None
    estimated_ms: dict[str, float] | None
    cuts: tuple[CutPoint, ...] | None
    computed: dict[str, int] | None = None
    stored: dict[str, int] | None = None


@dataclass(frozen=True)
class TextUse:
    """How captions become tokens; see `TextConfig`."""

    max_tokens: int
    padding: Padding
    null_prompt: NullPrompt


@dataclass(frozen=True)
class Inspection:
    """files: bytes by name. packages: empty for a model folder or preset.

    peak_memory: predicted, see manifest.PeakMemory; None for a model folder or preset. rules: the
    lint rules that some package breaks. provenance: as the model or bundle states it. text: how
    captions become tokens; None without text.
    """

    name: str
    levels: tuple[LevelSize, ...]
    parameters: int
    text_encoder_parameters: int | None
    variant: str | None
    files: dict[str, int]
    packages: tuple[PackageCensus, ...]
    provenance: Provenance
    peak_memory: PeakMemory | None = None
    rules: tuple[Rule, ...] = ()
    text: TextUse | None = None
    fps: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_config(name: str, config: ModelConfig, folder: Path | None = None) -> Inspection:
    """Sizes of a model; `folder` adds its files."""
    files = {} if folder is None else _file_sizes(folder)
    parts = _parameters(config)
    text, fps = _text_use(config), _fps(config)
    return Inspection(name, *parts, None, files, (), config.provenance, text=text, fps=fps)


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Sizes of a bundle and the census of its packages.

    Raises MissingPackageError for a Core AI bundle without Apple's packages for it.
    """
    files = {file.path: file.size for file in bundle.manifest.files}
    parameters = _parameters(bundle.config())
    manifest = bundle.manifest
    if manifest.format == "coreai":
        packages, known = _core_ai_packages(bundle), asset.RULES
    else:
        packages, known = tuple(_census(bundle, p.name) for p in manifest.packages), RULES
    name, peak = bundle.path.name, manifest.peak_memory
    broken = tuple(rule for rule in known if any(rule.name in p.findings for p in packages))
    return Inspection(
        name,
        *parameters,
        manifest.variant,
        files,
        packages,
        manifest.provenance,
        peak,
        broken,
        _text_use(bundle.config()),
        _fps(bundle.config()),
    )


def _text_use(config: ModelConfig) -> TextUse | None:
    text = config.text
    return None if text is None else TextUse(text.max_tokens, text.padding, text.null_prompt)


def parameters_of(function: Function) -> int:
    """Count of the stored numbers that a function's operations compute with, in any form."""
    held = {n: k for o in function.operations if o.is_constant for n, k in o.outputs}
    read = {n for o in function.operations if not o.is_constant for n in o.reads}
    return sum(kind.count for n, kind in held.items() if n in read and kind.is_float and kind.shape)


def _fps(config: ModelConfig) -> float | None:
    """Frames a second; None for pictures."""
    return None if config.frames == 1 else config.fps


def _parameters(config: ModelConfig) -> tuple[tuple[LevelSize, ...], int, int | None]:
    counts = [0] * len(config.sides)
    for name, shape in state_shapes(config.model).items():
        depth = 0
        while name.startswith(INNER * (depth + 1)):
            depth += 1
        counts[depth] += math.prod(shape)
    frames = [count for count, _ in config.clip_shapes]
    levels = tuple(LevelSize(*one) for one in zip(config.sides, counts, frames, strict=True))
    encoder = config.text.encoder if config.text else None
    return levels, sum(counts), _encoder_parameters(encoder) if encoder else None


def _encoder_parameters(config: T5Config) -> int:
    return sum(math.prod(shape) for shape in encoder_shapes(config).values())


def _census(bundle: Bundle, name: str) -> PackageCensus:
    info = bundle.package(name)
    package = Package.open(bundle.file(info.path))
    function = function_of(package, name)
    findings = lint(package, function.name)
    cost = cost_of(function)
    kinds = Counter(o.kind for o in function.operations if not o.is_constant)
    compressed = sum(o.kind.startswith("constexpr_") for o in function.operations)
    return PackageCensus(
        name=info.name,
        path=info.path,
        phase=info.phase,
        bytes=info.bytes,
        precision=info.precision,
        weight_bits=info.weight_bits,
        activation_bytes=info.activation_bytes,
        operations=dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        parameters=parameters_of(function),
        plain_weights=len(weights_of(function)),
        compressed_weights=compressed,
        for_neural_engine=info.compute == "cpuAndNeuralEngine",
        findings=count_by_rule(findings),
        errors=sum(f.severity == "error" for f in findings),
        first_errors=tuple(f for f in findings if f.severity == "error")[:SHOWN],
        flops=cost.flops,
        traffic=cost.traffic,
        weight_bytes=cost.weight_bytes,
        estimated_ms={chip.name: 1e3 * cost.seconds(chip) for chip in CHIPS},
        cuts=tuple(cut_points(function)),
    )


def _core_ai_packages(bundle: Bundle) -> tuple[PackageCensus, ...]:
    runtime = AppleRuntime()
    try:
        return tuple(
            _core_ai_census(
                info, runtime.census(bundle.file(info.path), bundle.function(info) or "main")
            )
            for info in bundle.manifest.packages
        )
    finally:
        runtime.close()


def _core_ai_census(info: PackageInfo, found: Census) -> PackageCensus:
    errors, first = asset.errors_of(found)
    return PackageCensus(
        name=info.name,
        path=info.path,
        phase=info.phase,
        bytes=info.bytes,
        precision=info.precision,
        weight_bits=info.weight_bits,
        activation_bytes=info.activation_bytes,
        operations=found.operations,
        parameters=found.parameters,
        plain_weights=found.plain_weights,
        compressed_weights=found.compressed_weights,
        for_neural_engine=info.compute == "cpuAndNeuralEngine",
        findings=asset.by_rule(found),
        errors=errors,
        first_errors=first[:SHOWN],
        flops=None,
        traffic=None,
        weight_bytes=None,
        estimated_ms=None,
        cuts=None,
        computed=found.computed,
        stored=found.stored,
    )


def _file_sizes(folder: Path) -> dict[str, int]:
    """Files directly inside a model folder."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
