"""Small programs written operation by operation, not made by this project's converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.execute import Package

Body = Callable[[Any, Any], Any]


def package(
    tmp_path: Path,
    body: Body,
    shape: tuple[Any, ...] = (1, 64, 32, 32),
    inputs: Callable[[Any], list[Any]] | None = None,
) -> Package:
    """A program of one input x in fp16, built without a network."""
    with quiet_coremltools() as coremltools:
        builder = coremltools.converters.mil.Builder
        mil_types = coremltools.converters.mil.mil.types

        @builder.program(
            input_specs=[builder.TensorSpec(shape=shape, dtype=mil_types.fp16)],
            opset_version=coremltools.target.iOS18,
        )
        def program(x: Any) -> Any:
            return body(builder, x)

        model = coremltools.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS18,
            compute_precision=coremltools.precision.FLOAT32,  # leave types as the program has them
            skip_model_load=True,
            inputs=inputs(coremltools) if inputs else None,
        )
        path = tmp_path / "seeded.mlpackage"
        model.save(str(path))
    return Package.open(path)


def half(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).standard_normal(shape).astype(np.float16)
