"""int8 and int4 weights with scales, by coremltools."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..coreml import quiet_coremltools
from ..package_file.seal import copy_package
from .settings import INT4_BLOCK


def quantize_linear(source: Path, target: Path, names: Collection[str], bits: int) -> None:
    """Write `source` to `target` with the named constants as int8 per channel or int4 per block."""
    with (
        quiet_coremltools() as coremltools,
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
    ):
        optimize = importlib.import_module("coremltools.optimize.coreml")
        opened = Path(scratch) / "opened.mlpackage"  # coremltools rewrites what it opens
        copy_package(source, opened)
        model = coremltools.models.MLModel(str(opened), skip_model_load=True)
        shared = {"mode": "linear_symmetric", "weight_threshold": 0}
        if bits == 8:
            each = optimize.OpLinearQuantizerConfig(
                **shared, dtype="int8", granularity="per_channel"
            )
        else:
            each = optimize.OpLinearQuantizerConfig(
                **shared, dtype="int4", granularity="per_block", block_size=INT4_BLOCK
            )
        config = optimize.OptimizationConfig(
            global_config=None, op_name_configs=dict.fromkeys(sorted(names), each)
        )
        model = optimize.linear_quantize_weights(model, config)
        saved = Path(scratch) / target.name
        model.save(str(saved))
        saved.rename(target)
