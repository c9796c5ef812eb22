"""Compressed and shared weights: what the executor decodes against what coremltools decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from execute_cases import build, convert, ct, error, outputs

from mdm_apple.conversion.execute import ExecutionError, Package
from mdm_apple.conversion.execute.compressed import look_up

cto: Any = ct.optimize.coreml


def palettized(bits: int, **settings: Any) -> Callable[[Any], Any]:
    config = cto.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0, **settings)
    return lambda model: cto.palettize_weights(model, cto.OptimizationConfig(config))


def quantized(dtype: str, granularity: str, **settings: Any) -> Callable[[Any], Any]:
    config = cto.OpLinearQuantizerConfig(
        mode="linear", dtype=dtype, granularity=granularity, weight_threshold=0, **settings
    )
    return lambda model: cto.linear_quantize_weights(model, cto.OptimizationConfig(config))


def pruned(model: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0)
    return cto.prune_weights(model, cto.OptimizationConfig(config))


def jointly(first: Callable[[Any], Any], bits: int) -> Callable[[Any], Any]:
    config = cto.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0)
    return lambda model: cto.palettize_weights(
        first(model), cto.OptimizationConfig(config), joint_compression=True
    )


def quantized_palette(model: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_tensor", weight_threshold=0
    )
    return cto.linear_quantize_weights(
        palettized(4)(model), cto.OptimizationConfig(config), joint_compression=True
    )


GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
COMPRESSIONS: dict[str, tuple[int, str, Callable[[Any], Any]]] = {
    **{f"lut{b}": (18, "constexpr_lut_to_dense", palettized(b)) for b in (1, 2, 3, 4, 6, 8)},
    **{f"ios17 lut{b}": (17, "constexpr_lut_to_dense", palettized(b)) for b in (1, 2, 4, 6, 8)},
    "lut4 groups": (18, "constexpr_lut_to_dense", palettized(4, **GROUPS)),
    "lut4 scales": (
        18,
        "constexpr_blockwise_shift_scale",
        palettized(4, enable_per_channel_scale=True),
    ),
    "lut int8": (18, "constexpr_blockwise_shift_scale", quantized_palette),
    "int8": (18, "constexpr_blockwise_shift_scale", quantized("int8", "per_channel")),
    "ios17 int8": (17, "constexpr_affine_dequantize", quantized("int8", "per_channel")),
    "int4 blocks": (
        18,
        "constexpr_blockwise_shift_scale",
        quantized("int4", "per_block", block_size=16),
    ),
    "sparse": (18, "constexpr_sparse_to_dense", pruned),
    "ios17 sparse": (17, "constexpr_sparse_to_dense", pruned),
    "sparse lut4": (18, "constexpr_lut_to_sparse", jointly(pruned, 4)),
}


@pytest.mark.parametrize("name", list(COMPRESSIONS))
def test_compressed_weights_equal_those_that_coremltools_decompresses(
    tmp_path: Path, name: str
) -> None:
    target, kind, compress = COMPRESSIONS[name]
    model = compress(convert("weights", target, "fp16"))
    model.save(str(tmp_path / "small.mlpackage"))
    cto.decompress_weights(model).save(str(tmp_path / "large.mlpackage"))
    package = Package.open(tmp_path / "small.mlpackage")
    assert kind in {operation.kind for operation in package.function().operations}
    _, inputs = build("weights")
    got = list(package.load(precision="fp16")(inputs).values())
    assert error(got, outputs(tmp_path / "large.mlpackage", inputs, "fp16")) < 1e-3


def test_vector_palette_is_laid_along_its_axis() -> None:
    lut = np.array([[1, 2, 3], [4, 5, 6]], np.float32)[None, None]
    indices = np.array([[0, 1], [1, 0]], np.uint8)
    rows = look_up(indices, lut, 0)
    assert rows.tolist() == [[1, 4], [2, 5], [3, 6], [4, 1], [5, 2], [6, 3]]
    assert look_up(indices, lut, 1).tolist() == [[1, 2, 3, 4, 5, 6], [4, 5, 6, 1, 2, 3]]
    grouped = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    assert look_up(indices, grouped, 1).tolist() == [[0, 1, 2, 3], [6, 7, 4, 5]]


def test_functions_are_run_by_name(tmp_path: Path) -> None:
    for name, model in (
        ("a", convert("weights", 18, "fp16")),
        ("b", palettized(2)(convert("weights", 18, "fp16"))),
    ):
        model.save(str(tmp_path / f"{name}.mlpackage"))
    description = ct.utils.MultiFunctionDescriptor()
    for name in "ab":
        description.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    description.default_function_name = "b"
    ct.utils.save_multifunction(description, str(tmp_path / "both.mlpackage"))
    package = Package.open(tmp_path / "both.mlpackage")
    _, inputs = build("weights")
    assert package.functions == ("a", "b")
    for name, function in (("a", "a"), ("b", None)):
        (got,) = package.load(function)(inputs).values()
        assert (got == outputs(tmp_path / f"{name}.mlpackage", inputs)[0]).all()
    with pytest.raises(ExecutionError, match="no function 'c'"):
        package.load("c")
