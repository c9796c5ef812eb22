"""Executes the packages of a bundle in order, wired by name, for any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.types import ComputeUnits, ExecutorPrecision

from ..bundle.folder import Bundle
from ..bundle.manifest import LevelInfo, PackageInfo
from ..coreai.runtime import AppleRuntime
from ..errors import BundleError
from ..execute import Package, Watch
from ..layouts.names import POOLED, TEXT_FEATURES
from ..layouts.parts import Phase

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Jump:
    """A student's target index and guidance weight; None: the smallest weight it knows."""

    target: int
    weight: float | None = None


class Runnable(Protocol):
    """A loaded package: maps arrays by name to arrays by name, with numbers as float32."""

    def __call__(
        self, inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None
    ) -> Values: ...


# takes the path of a package, the function if it has several, and the manifest's proposed compute
# units
Load = Callable[[Path, str | None, ComputeUnits], Runnable]


def executor(precision: ExecutorPrecision) -> Load:
    """A loader of packages that run without Core ML."""
    return lambda path, function, _: Package.open(path).load(function, precision=precision)


def default_load(bundle: Bundle, precision: ExecutorPrecision) -> Load:
    """The executor for Core ML packages, Apple's runtime for those of Core AI."""
    if bundle.manifest.format == "coreml":
        return executor(precision)
    if precision != "fp16":
        raise BundleError(
            f"{bundle.path}: Core AI packages compute in fp16; mdm verify --model NAME --precision "
            "fp32 makes fp32 packages for itself."
        )
    return AppleRuntime()


class Chain:
    """Runs the packages of one phase at a time; loads each when it is first needed."""

    def __init__(
        self, bundle: Bundle, precision: ExecutorPrecision, load: Load | None = None
    ) -> None:
        """load: turns a package into a Runnable; see `default_load`."""
        self.bundle = bundle
        self._load = load or default_load(bundle, precision)
        self._programs: dict[str, Runnable] = {}

    def run(
        self,
        phase: Phase,
        values: Mapping[str, NDArray[Any]],
        watches: dict[str, Watch] | None = None,
        largest: int | None = None,
    ) -> Values:
        """The values known before, plus the outputs of the packages of `phase`.

        Args:
            watches: receives one Watch per package that runs. Raises ExecutionError.
            largest: side of the largest level to run; packages of larger levels are skipped.
        """
        known = dict(values)
        for package in self._running(phase, largest):
            watch = None if watches is None else watches.setdefault(package.name, Watch())
            inputs = {feature.name: known[feature.name] for feature in package.inputs}
            known |= self._program(package.name)(inputs, watch)
        return known

    def _running(self, phase: Phase, largest: int | None) -> list[PackageInfo]:
        packages = self.bundle.manifest.packages
        return [p for p in packages if p.phase == phase and self._runs(p.side, largest)]

    def _runs(self, side: int | None, largest: int | None) -> bool:
        """Whether a package of this side runs; in layout multifunction only one runs per step."""
        if side is None:
            return True
        if self.bundle.manifest.layout == "multifunction":
            return side == (self.bundle.sides[0] if largest is None else largest)
        return largest is None or side <= largest

    def _program(self, name: str) -> Runnable:
        if name not in self._programs:
            info = self.bundle.package(name)
            path, function = self.bundle.file(info.path), self.bundle.function(info)
            self._programs[name] = self._load(path, function, info.compute)
        return self._programs[name]


class Denoiser:
    """The network of a bundle for one picture at a time."""

    def __init__(
        self, bundle: Bundle, precision: ExecutorPrecision, load: Load | None = None
    ) -> None:
        self.bundle = bundle
        self.chain = Chain(bundle, precision, load)
        self._tables = bundle.tables()

    def condition(
        self, text: Mapping[str, NDArray[Any]] | None, watches: dict[str, Watch] | None = None
    ) -> Values:
        """The conditioning from a prompt, given as tokens and mask or as features and mask."""
        if text is None:
            return {}
        return self.chain.run("prompt", self.encode(text, watches), watches)

    def encode(
        self, text: Mapping[str, NDArray[Any]], watches: dict[str, Watch] | None = None
    ) -> Values:
        """Text with its features, from tokens; text that has features already is returned."""
        if TEXT_FEATURES in text:
            return dict(text)
        return self.chain.run("text", text, watches)

    def predict(
        self,
        x_t: list[NDArray[np.float32]],
        time: int,
        conditioning: Values,
        watches: dict[str, Watch] | None = None,
        first_level: int = 0,
        jump: Jump | None = None,
    ) -> list[NDArray[np.float32]]:
        """Prediction per level, (1, 3, side, side) each.

        Args:
            x_t: noisy images of the levels from `first_level` on, largest first.
            time: the table index minus one.
            first_level: the largest level that runs; it gets zeros from the level above.
            jump: for students only.
        """
        values, levels = dict(conditioning), self.bundle.manifest.levels[first_level:]
        if first_level and self.bundle.manifest.layout != "multifunction":
            values[levels[0].features or ""] = self._nothing_from_above(levels[0])
        for level, x in zip(levels, x_t, strict=True):
            temb = self._tables[level.time][time][None] + self._jump_embedding(level, jump)
            values[level.image] = x
            values[level.temb] = temb + values[POOLED] if POOLED in values else temb
        known = self.chain.run("step", values, watches, levels[0].side)
        return [known[level.prediction] for level in levels]

    def _jump_embedding(self, level: LevelInfo, jump: Jump | None) -> NDArray[np.float32] | float:
        """The terms that a student's extra inputs add to the time embedding."""
        student = self.bundle.manifest.student
        if student is None or jump is None or level.target_time is None:
            return 0.0
        added = self._tables[level.target_time][student.targets.index(jump.target)]
        if level.guidance is not None:
            row = 0 if jump.weight is None else self._row_of(jump.weight, student.weights)
            added = added + self._tables[level.guidance][row]
        return added[None]

    def _row_of(self, weight: float, weights: Sequence[float]) -> int:
        distances = [abs(weight - known) for known in weights]
        if min(distances) > 1e-6:
            known = ", ".join(f"{w:g}" for w in weights)
            raise BundleError(
                f"guidance: {self.bundle.path} takes {known}, got {weight:g}; give one of these."
            )
        return distances.index(min(distances))

    def _nothing_from_above(self, level: LevelInfo) -> NDArray[np.float32]:
        for package in self.bundle.manifest.packages:
            for feature in package.inputs:
                if feature.name == level.features:
                    return np.zeros(feature.shape, np.float32)
        raise BundleError(
            f"{self.bundle.path}: a {self.bundle.manifest.layout} runs all of its levels, so it "
            f"cannot stop at {level.side}; leave out --stop-at or use the model folder."
        )
