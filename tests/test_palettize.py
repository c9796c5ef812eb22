"""Palettized weights: few values, near the best ones, and every exception named."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest

from conversion.bundle import Bundle
from conversion.errors import ConversionError
from conversion.execute import Package
from conversion.execute.constants import load_constants
from conversion.kmeans import palette_of
from conversion.mlpackage import seal_package
from conversion.palettize import (
    MINIMUM_ELEMENTS,
    PalettizeReport,
    compress_package,
    end_convolutions,
    palettize,
    weights_of,
)

pytest_plugins = ["bundles"]


def squared_error(x: np.ndarray, bits: int) -> float:
    palette = palette_of(x, bits)
    assert len(palette.values) == 1 << bits
    return float(np.square(x.astype(float) - palette.values[palette.indices].astype(float)).sum())


def optimal_error(x: np.ndarray, bits: int) -> float:
    """The exact optimum, by the dynamic programme that coremltools carries."""
    from coremltools._deps import kmeans1d

    support, counts = np.unique(x, return_counts=True)
    best = kmeans1d.cluster(support.astype(float), 1 << bits, weights=counts.astype(float))
    centroids = np.array(best.centroids)[np.array(best.clusters)]
    return float(counts @ np.square(support.astype(float) - centroids))


@pytest.mark.parametrize(("bits", "excess"), [(2, 1.001), (4, 1.002), (6, 1.02), (8, 1.04)])
def test_palette_of_gaussian_weights_is_near_the_optimum(bits: int, excess: float) -> None:
    x = (np.random.RandomState(0).standard_normal(40_000) * 0.02).astype(np.float16)
    assert squared_error(x, bits) <= excess * optimal_error(x, bits)


@pytest.mark.parametrize(("bits", "excess"), [(4, 1.01), (6, 1.1)])
def test_palette_of_long_tails_is_near_the_optimum(bits: int, excess: float) -> None:
    x = (np.random.RandomState(1).standard_t(3, 40_000) * 0.02).astype(np.float16)
    assert squared_error(x, bits) <= excess * optimal_error(x, bits)


def test_few_values_are_kept_exactly() -> None:
    x = np.array([0.5, -0.25, 0.0, -0.0, 0.5, 65504, -65504], np.float16)
    palette = palette_of(x, 4)
    assert np.array_equal(palette.values[palette.indices], x)
    assert np.array_equal(palette_of(np.zeros(9, np.float16), 2).values, np.zeros(4))


def test_palettized_tensors_have_sixteen_values_from_tables_of_sixteen(
    tiny_palettized: tuple[Bundle, PalettizeReport],
) -> None:
    bundle, report = tiny_palettized
    compressed = {(w.package, w.name) for w in report.weights if w.bits == 4}
    assert len(compressed) > 40
    for info in bundle.manifest.packages:
        package = Package.open(bundle.file(info.path))
        function = package.function()
        constants = load_constants(function, package.weight_file, fp16=False)
        tables = [o for o in function.operations if o.kind == "constexpr_lut_to_dense"]
        assert len(tables) == sum(name == info.name for name, _ in compressed)
        for operation in tables:
            (lut,) = operation.inputs["lut"]
            assert not isinstance(lut, str)
            assert lut.type.count == 16
            values = np.unique(np.asarray(constants[operation.outputs[0][0]]))
            assert len(values) <= 16


def test_every_weight_is_compressed_or_named_with_a_reason(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport]
) -> None:
    _, report = tiny_palettized
    reported = {(w.package, w.name): w for w in report.weights}
    for info in tiny_bundle.manifest.packages:
        for weight in weights_of(Package.open(tiny_bundle.file(info.path)).function()):
            entry = reported[info.name, weight.name]
            assert (entry.reason is None) == (entry.bits == 4)
            assert (weight.elements < MINIMUM_ELEMENTS) == (
                entry.reason == f"fewer than {MINIMUM_ELEMENTS} numbers"
            )


def test_ends_are_the_convolutions_next_to_the_images(tiny_bundle: Bundle) -> None:
    function = Package.open(tiny_bundle.file("denoiser.mlpackage")).function()
    assert end_convolutions(function) == {
        "p_net_conv_in_weight_to_fp16",
        "p_net_conv_out_weight_to_fp16",
        "p_net_inner_unet_conv_in_weight_to_fp16",
        "p_net_inner_unet_conv_out_weight_to_fp16",
    }


def test_manifest_tells_the_variant_and_the_rest_is_unchanged(
    tiny_bundle: Bundle, tiny_palettized: tuple[Bundle, PalettizeReport]
) -> None:
    bundle, report = tiny_palettized
    assert bundle.manifest.variant == "palettized-4"
    assert {p.weight_bits for p in bundle.manifest.packages} == {4}
    assert report.bytes_after == sum(p.bytes for p in bundle.manifest.packages)
    assert report.bytes_after < 0.55 * report.bytes_before
    rest = ["tables.safetensors", "golden.safetensors", "config.json", "tokenizer/tokenizer.model"]
    assert filecmp.cmpfiles(tiny_bundle.path, bundle.path, rest, shallow=False)[0] == rest
    assert Bundle.open(tiny_bundle.path).manifest == tiny_bundle.manifest


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_package_compresses_to_the_same_bytes_twice(
    tiny_bundle: Bundle, tmp_path: Path, bits: int
) -> None:
    source = tiny_bundle.file("conditioning.mlpackage")
    sizes = []
    for name in ("one", "two"):
        target = tmp_path / f"{name}.mlpackage"
        reports = compress_package(source, target, "conditioning", bits, protect_ends=True)
        assert {r.bits for r in reports} == {bits}
        seal_package(target, "conditioning", None)
        sizes.append(
            {p.relative_to(target): p.read_bytes() for p in target.rglob("*.*") if p.is_file()}
        )
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 3


def test_compressing_twice_is_refused(
    tiny_palettized: tuple[Bundle, PalettizeReport], tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="compressed already"):
        palettize(tiny_palettized[0], tmp_path / "again", 2)
    assert not list(tmp_path.iterdir())


def test_unknown_bits_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="expected one of 8, 6, 4, 2, got 5"):
        palettize(tiny_bundle, tmp_path / "five", 5)
