"""Executes the models of a pipeline one after the other, wired by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdm_apple.config.strict_json import unknown_name

from .errors import ExecutionError
from .executable import Executable
from .features import Feature, Features
from .graph import TensorType
from .pictures import from_values
from .watch import Watch


@dataclass(frozen=True)
class Stage:
    """One loaded model of a pipeline, with its features."""

    program: Executable
    features: Features


class Pipeline:
    """A loaded pipeline: call it like a program; see `Executable`.

    A picture that one model hands to another is rounded to 8 bits, as Core ML hands it over.
    """

    def __init__(self, stages: tuple[Stage, ...], features: Features) -> None:
        """Raises ExecutionError if a stage reads what no stage before it makes."""
        inputs, outputs = features.inputs, features.outputs
        self._stages, self._wanted, self._given = stages, tuple(outputs), tuple(inputs)
        self.inputs: dict[str, TensorType] = {}
        self.outputs: dict[str, TensorType] = {}
        known = set(inputs)
        for number, stage in enumerate(stages, 1):
            for name, kind in stage.program.inputs.items():
                if name not in known and not _may_be_left_out(stage, name):
                    raise ExecutionError(
                        f"model {number} of the pipeline: reads {name!r}, which is neither an "
                        "input nor made before it; the package is damaged."
                    )
                if name in inputs:
                    self.inputs.setdefault(name, kind)
            known |= stage.features.outputs.keys()
            made = stage.program.outputs.items()
            self.outputs.update({name: kind for name, kind in made if name in outputs})
        for name in outputs:
            if name not in known:
                raise ExecutionError(f"output {name!r}: no model of the pipeline computes it.")

    def __call__(self, inputs: Mapping[str, Any], watch: Watch | None = None) -> dict[str, Any]:
        for name in inputs:
            if name not in self._given:
                raise ExecutionError(f"input {name!r}: unknown. {unknown_name(name, self._given)}")
        values = dict(inputs)
        pictures: dict[str, Feature] = {}  # values that are pictures, made by a stage
        for stage in self._stages:
            taken = {
                name: _handed_over(
                    values[name], pictures.get(name), stage.features.inputs.get(name)
                )
                for name in stage.program.inputs
                if name in values
            }
            values |= stage.program(taken, watch)
            pictures |= {n: f for n, f in stage.features.outputs.items() if f.kind == "picture"}
        return {name: values[name] for name in self._wanted}


def _may_be_left_out(stage: Stage, name: str) -> bool:
    feature = stage.features.inputs.get(name)
    return feature is not None and feature.default is not None


def _handed_over(value: Any, made: Feature | None, taken: Feature | None) -> Any:
    if made is None or made.colors is None or taken is None or taken.kind != "picture":
        return value
    return from_values(value, made.colors)
