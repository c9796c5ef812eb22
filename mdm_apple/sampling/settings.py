"""Sampling settings of a request, and the defaults for those left out.

A model may have a `sampling.json` beside it: the sampler, steps and guidance that suit it.
`mdm export` and `mdm distill` write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mdm_apple.config.model import Distilled, Threshold
from mdm_apple.config.ranges import in_range
from mdm_apple.config.strict_json import read_config, to_json
from mdm_apple.diffusion.schedule import Spacing
from mdm_apple.sampling.pictures import Recipe
from mdm_apple.sampling.walk import SamplerConfig, SamplerKind
from mdm_apple.storage.files import atomic_file

SAMPLING = "sampling.json"
STEPS = 50  # for a sampler without a known default


@dataclass(frozen=True)
class SamplingDefaults:
    """Settings that suit a model; None: unknown."""

    sampler: SamplerKind | None = None
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1)
        in_range("guidance", self.guidance, -100, 100)

    def updated(self, asked: SamplingDefaults) -> SamplingDefaults:
        """These defaults, overridden by `asked`."""
        return SamplingDefaults(
            asked.sampler or self.sampler,
            asked.steps or self.steps,
            self.guidance if asked.guidance is None else asked.guidance,
        )


@dataclass(frozen=True)
class SampleSettings:
    """The caller's settings; None: whatever suits the model.

    steps: network evaluations. full_table: every timestep of the table instead. guidance: 1 is
    none. stop_at: side of the highest level to run, of its canvas for clips.
    """

    sampler: SamplerKind | None = None
    steps: int | None = None
    full_table: bool = False
    eta: float | None = None
    guidance: float | None = None
    threshold: Threshold | None = None
    spacing: Spacing | None = None
    stop_at: int | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> SampleSettings:
        """The settings that made a picture."""
        return cls(
            recipe.sampler,
            recipe.steps,
            recipe.steps is None,
            recipe.eta,
            recipe.guidance,
            recipe.threshold,
            recipe.grid,
            recipe.stop_at,
        )

    def sampler_config(self, defaults: SamplingDefaults) -> SamplerConfig:
        """The complete settings, with gaps filled from `defaults`. Raises ConfigError."""
        kind = self.sampler or defaults.sampler or "ddim"
        steps = self.steps
        if steps is None:  # a default step count belongs to its own sampler
            steps = defaults.steps if kind == defaults.sampler else None
        guidance = defaults.guidance if self.guidance is None else self.guidance
        return SamplerConfig(
            kind=kind,
            num_steps=None if self.full_table else STEPS if steps is None else steps,
            eta=0.0 if self.eta is None else self.eta,
            guidance_scale=1.0 if guidance is None else guidance,
            threshold=self.threshold,
            spacing=self.spacing or "even",
        )


class SettingWords(TypedDict, total=False):
    """Fields of SampleSettings as keywords of a call, all but `stop_at`."""

    sampler: SamplerKind | None
    steps: int | None
    full_table: bool
    eta: float | None
    guidance: float | None
    threshold: Threshold | None
    spacing: Spacing | None


def read_sampling(folder: Path, distilled: Distilled | None) -> SamplingDefaults:
    """The defaults beside a model, completed for a student; a damaged file raises ConfigError."""
    path = folder / SAMPLING
    beside = read_config(SamplingDefaults, path) if path.is_file() else SamplingDefaults()
    if distilled is None:
        return beside
    return student_sampling(distilled, steps=1).updated(beside)


def student_sampling(distilled: Distilled, steps: int) -> SamplingDefaults:
    """The defaults of a student: the middle of the guidance range that it learned."""
    guidance = sum(distilled.guidance) / 2 if distilled.guidance else None
    return SamplingDefaults("student", steps, guidance)


def forget_sampling(folder: Path) -> None:
    """Remove the defaults of a model that another one replaces."""
    (folder / SAMPLING).unlink(missing_ok=True)


def write_sampling(folder: Path, defaults: SamplingDefaults) -> None:
    """Write `sampling.json` beside a model; raises FileError."""
    with atomic_file(folder / SAMPLING) as file:
        file.write(to_json(defaults).encode())
