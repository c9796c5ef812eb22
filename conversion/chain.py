"""The packages of a bundle, executed in order and wired by name, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conversion.bundle import Bundle
from conversion.errors import BundleError
from conversion.execute import Package, Precision, Watch
from conversion.manifest import LevelInfo
from conversion.parts import POOLED, TOKEN_IDS, Phase

Values = dict[str, NDArray[Any]]


class Runnable(Protocol):
    """A loaded package: arrays by name to arrays by name, float32 where they are numbers."""

    def __call__(
        self, inputs: Mapping[str, NDArray[Any]], watch: Watch | None = None
    ) -> Values: ...


Load = Callable[[Path], Runnable]  # from the path of a package


class Chain:
    """Runs the packages of one phase at a time; each is loaded when it is first needed."""

    def __init__(self, bundle: Bundle, precision: Precision, load: Load | None = None) -> None:
        """load: makes something runnable of a package; the executor's by default."""
        self.bundle = bundle
        self._load = load or (lambda path: Package.open(path).load(precision=precision))
        self._programs: dict[str, Runnable] = {}

    def run(
        self,
        phase: Phase,
        values: Mapping[str, NDArray[Any]],
        watches: dict[str, Watch] | None = None,
        largest: int | None = None,
    ) -> Values:
        """Everything known before, and the outputs of the packages of `phase`.

        Args:
            watches: receives one Watch per package that runs. Raises ExecutionError.
            largest: side of the largest level to run; packages of larger ones are left out.
        """
        known = dict(values)
        for package in self.bundle.manifest.packages:
            left_out = largest is not None and package.side is not None and package.side > largest
            if package.phase == phase and not left_out:
                watch = None if watches is None else watches.setdefault(package.name, Watch())
                inputs = {feature.name: known[feature.name] for feature in package.inputs}
                known |= self._program(package.name)(inputs, watch)
        return known

    def _program(self, name: str) -> Runnable:
        if name not in self._programs:
            self._programs[name] = self._load(self.bundle.file(self.bundle.package(name).path))
        return self._programs[name]


class Denoiser:
    """The network of a bundle for one picture at a time."""

    def __init__(self, bundle: Bundle, precision: Precision, load: Load | None = None) -> None:
        self.bundle = bundle
        self.chain = Chain(bundle, precision, load)
        self._tables = bundle.tables()

    def condition(
        self, text: Mapping[str, NDArray[Any]] | None, watches: dict[str, Watch] | None = None
    ) -> Values:
        """What a prompt contributes: from tokens and mask, or from features and mask."""
        if text is None:
            return {}
        encoded = self.chain.run("text", text, watches) if TOKEN_IDS in text else dict(text)
        return self.chain.run("prompt", encoded, watches)

    def predict(
        self,
        x_t: list[NDArray[np.float32]],
        time: int,
        conditioning: Values,
        watches: dict[str, Watch] | None = None,
        first_level: int = 0,
    ) -> list[NDArray[np.float32]]:
        """Prediction per level, (1, 3, side, side) each.

        Args:
            x_t: noisy images of the levels from `first_level` on, largest first.
            time: the table index less one.
            first_level: the largest level that runs; it gets zeros from the one above.
        """
        values, levels = dict(conditioning), self.bundle.manifest.levels[first_level:]
        if first_level:
            values[levels[0].features or ""] = self._nothing_from_above(levels[0])
        for level, x in zip(levels, x_t, strict=True):
            temb = self._tables[level.time][time][None]
            values[level.image] = x
            values[level.temb] = temb + values[POOLED] if POOLED in values else temb
        known = self.chain.run("step", values, watches, levels[0].side)
        return [known[level.prediction] for level in levels]

    def _nothing_from_above(self, level: LevelInfo) -> NDArray[np.float32]:
        for package in self.bundle.manifest.packages:
            for feature in package.inputs:
                if feature.name == level.features:
                    return np.zeros(feature.shape, np.float32)
        raise BundleError(
            f"{self.bundle.path}: a {self.bundle.manifest.layout} runs all of its levels, so it "
            f"cannot stop at {level.side}; leave out --stop-at or use the model folder."
        )
