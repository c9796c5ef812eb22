"""A program with what its description adds: pictures, allowed sizes, defaults, class labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import ExecutionError
from .executable import Executable
from .features import Features
from .graph import UNKNOWN, Classifier
from .watch import Watch


class DescribedProgram:
    """Call it like the program it holds; see `Executable` for what it takes and returns."""

    def __init__(
        self, program: Executable, features: Features, classifier: Classifier | None
    ) -> None:
        """features: those inputs count that the program has."""
        self._program, self._classifier = program, classifier
        described = features.inputs
        self._features = {name: described[name] for name in program.inputs if name in described}
        self.inputs, self.outputs = program.inputs, dict(program.outputs)
        if classifier is not None and not classifier.shows_scores:
            del self.outputs[classifier.scores]

    def __call__(self, inputs: Mapping[str, Any], watch: Watch | None = None) -> dict[str, Any]:
        accepted = {
            name: self._features[name].accept(value) if name in self._features else value
            for name, value in inputs.items()
        }
        for name, feature in self._features.items():
            if name not in accepted and feature.default is not None:
                kind = self.inputs[name]
                shape = tuple(
                    feature.shape[i] if size == UNKNOWN and i < len(feature.shape) else size
                    for i, size in enumerate(kind.shape)
                )
                dtype = np.float32 if kind.is_float else np.int32
                accepted[name] = np.full(shape, feature.default, dtype)
        results = self._program(accepted, watch)
        if self._classifier is None:
            return results
        return _with_labels(results, self._classifier)


def needs_description(features: Features, classifier: Classifier | None) -> bool:
    """Whether a program alone would not do what its description says."""
    return classifier is not None or any(
        feature.kind != "array" or feature.is_flexible or feature.default is not None
        for feature in features.inputs.values()
    )


def _with_labels(results: dict[str, Any], classifier: Classifier) -> dict[str, Any]:
    """The results with the label of the largest score, and with all scores by label."""
    scores = np.asarray(results[classifier.scores]).reshape(-1)
    shown = {n: v for n, v in results.items() if classifier.shows_scores or n != classifier.scores}
    labels = classifier.labels
    if len(scores) != len(labels):
        raise ExecutionError(
            f"classify {classifier.name!r}: has {len(labels)} labels for {len(scores)} scores; the "
            "package is damaged."
        )
    by_label = dict(zip(labels, map(float, scores), strict=True))
    best = labels[int(np.nanargmax(scores))] if not np.isnan(scores).all() else labels[0]
    return shown | {classifier.label: best, classifier.probabilities: by_label}
