"""The contents of a Core AI package: of a function of ours, or of anybody's .aimodel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..coreai.asset_files import check_files
from ..coreai.census import Census
from ..coreai.runtime import AppleRuntime
from .lint import COREAI, Finding, Rule

COMPARISONS = "apple/coreai-torch, issues 11 and 74"
CHOICES = "apple/coreai-torch, issues 115 and 116"
COREAI_MODELS = "apple/coreai-models, issue 205"
COREAI_LISTS = "Apple's lists of palettes name 2, 4, 6 and 8 bits"

RULES = (
    Rule("fp32", "error", "one fp32 operation leaves the Neural Engine", COREAI),
    Rule("rank", "error", "tensors of more than 5 axes are not supported", COREAI),
    Rule("dynamic-shape", "error", "shapes must be fixed when the model is compiled", COREAI),
    Rule(
        "infinity",
        "error",
        "an infinity, or the lowest number of fp16, becomes NaN in a softmax; -4e4 does not",
        COREAI,
    ),
    Rule(
        "boolean-cast",
        "error",
        "numbers made from comparisons come out wrong on the CPU",
        COMPARISONS,
    ),
    Rule("selection", "error", "may give wrong numbers on the engine in fp16", CHOICES),
    Rule("linear-int4", "error", "is not compiled for the engine; palettes are", COREAI_MODELS),
    Rule("palette-3-bits", "cost", "is not known to run on the engine", COREAI_LISTS),
    Rule("short-last-axis", "cost", "the last axis is padded to 64 bytes", COREAI),
)
_BY_NAME = {rule.name: rule for rule in RULES}


@dataclass(frozen=True)
class AssetContents:
    """A .aimodel. files: bytes by name. census: see `coreai.census.Census`.

    rules: the lint rules that it breaks.
    """

    name: str
    files: dict[str, int]
    census: Census
    rules: tuple[Rule, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_asset(path: Path) -> AssetContents:
    """Look into anybody's .aimodel; nothing is executed.

    Raises ExecutionError if it is damaged, MissingPackageError without Core AI's packages.
    """
    files = check_files(path)
    runtime = AppleRuntime()
    try:
        found = runtime.census(path)
    finally:
        runtime.close()
    return AssetContents(path.name, files, found, broken(found.findings))


def broken(findings: dict[str, int]) -> tuple[Rule, ...]:
    """The rules that have findings."""
    return tuple(rule for rule in RULES if findings.get(rule.name))


def by_rule(found: Census) -> dict[str, int]:
    """Counts of findings in the order of RULES."""
    return {rule.name: found.findings[rule.name] for rule in broken(found.findings)}


def errors_of(found: Census) -> tuple[int, tuple[Finding, ...]]:
    """How many findings keep operations off the Neural Engine, and some of them.

    The first of every rule come first, then the second.
    """
    rules = [rule for rule in broken(found.findings) if rule.severity == "error"]
    groups = [[f for f in found.first if f.rule == rule.name] for rule in rules]
    in_turn = [f for row in zip_longest(*groups) for f in row if f is not None]
    first = [Finding(f.rule, "error", f.operation, f.detail) for f in in_turn]
    return sum(found.findings[rule.name] for rule in rules), tuple(first)
