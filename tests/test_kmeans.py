"""Palettes are near the best there are, and depend on nothing but their own numbers."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from bundle_cache import remembered

from mdm_apple.conversion.compress.histogram import histogram
from mdm_apple.conversion.compress.kmeans import palette_of, palettes_of
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.errors import ConversionError
from mdm_apple.conversion.execute.blob import unpack
from mdm_apple.conversion.package_file.weightfile import pack


def numbers(kind: str, count: int, seed: int = 0) -> np.ndarray:
    random = np.random.RandomState(seed)
    if kind == "gauss":
        x = random.standard_normal(count)
    elif kind == "student":
        x = random.standard_t(3, count)
    elif kind == "channels":  # what training leaves: a scale of its own for every channel
        x = random.standard_normal((count // 64, 64)) * random.lognormal(0, 1, (count // 64, 1))
    else:  # most of it small, a few large
        x = random.laplace(0, 0.1, count) + (random.rand(count) < 0.01) * random.laplace(
            0, 3, count
        )
    return (0.02 * x).astype(np.float16).reshape(-1)


def squared_error(x: np.ndarray, bits: int) -> float:
    palette = palette_of(x, bits)
    assert len(palette.values) == 1 << bits
    error = float(np.square(x.astype(float) - palette.values[palette.indices].astype(float)).sum())
    assert palette.squared_error == pytest.approx(error, rel=1e-9, abs=1e-12)
    assert palette.squared_sum == pytest.approx(float(np.square(x.astype(float)).sum()))
    return error


def optimal_error(x: np.ndarray, bits: int, rounded: bool = False) -> float:
    """The exact optimum, by the dynamic programme that coremltools carries; or that of its
    centroids, rounded to fp16."""
    with quiet_coremltools():
        kmeans1d = importlib.import_module("coremltools._deps").kmeans1d
    support, counts = np.unique(x, return_counts=True)
    best = kmeans1d.cluster(support.astype(float), 1 << bits, weights=counts.astype(float))
    if rounded:
        values = np.unique(np.float16(best.centroids)).astype(float)
        return float(counts @ np.abs(support.astype(float)[:, None] - values).min(axis=1) ** 2)
    centroids = np.array(best.centroids)[np.array(best.clusters)]
    return float(counts @ np.square(support.astype(float) - centroids))


def quadratic_optimum(x: np.ndarray, cells: int) -> float:
    """The exact optimum again, by trying every border: for few numbers."""
    support, counts = np.unique(x.astype(float), return_counts=True)
    n = len(support)
    cost = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            w, v = counts[i:j], support[i:j]
            cost[i, j] = float(w @ np.square(v - (w @ v) / w.sum()))
    best = cost[0]
    for _ in range(cells - 1):
        best = np.min(best[:, None] + cost, axis=0)
    return float(best[n])


def stock_error(x: np.ndarray, bits: int) -> float:
    """What coremltools' own palettizer makes of the same numbers; it needs scikit-learn here."""
    sklearn = pytest.importorskip("sklearn")
    given = ("palette by coremltools", sklearn.__version__, str(bits), str(x.dtype), x.tobytes())
    return remembered(given, lambda: computed_stock_error(x, bits))


def computed_stock_error(x: np.ndarray, bits: int) -> float:
    with quiet_coremltools():
        passes = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
        values, indices = passes.palettize_weights._get_lut_and_indices(x, "KMEANS", bits, None)
    return float(np.square(x.astype(float) - np.asarray(values)[indices].astype(float)).sum())


def test_the_yardstick_is_the_optimum() -> None:
    x = numbers("student", 60)
    for bits in (1, 2, 3):
        assert optimal_error(x, bits) == pytest.approx(quadratic_optimum(x, 1 << bits))


BARS = {2: 1.001, 3: 1.001, 4: 1.001, 6: 1.005, 8: 1.01}


@pytest.mark.parametrize("kind", ["gauss", "student", "channels", "laplace"])
@pytest.mark.parametrize("bits", BARS)
def test_error_is_near_the_optimum(kind: str, bits: int) -> None:
    for seed in range(2):
        x = numbers(kind, 24_576, seed)
        assert squared_error(x, bits) <= BARS[bits] * optimal_error(x, bits)


@pytest.mark.parametrize(
    ("bits", "excess"), [(2, 0.01), (3, 0.01), (4, 0.03), (6, 0.01), (8, 0.01)]
)
def test_error_of_small_groups_is_near_the_optimum(bits: int, excess: float) -> None:
    found = []
    for kind in ("gauss", "student", "channels", "laplace"):
        for count in (576, 1152):
            x = numbers(kind, count, count)
            found.append(squared_error(x, bits) / optimal_error(x, bits) - 1)
    assert max(found) <= excess
    assert np.mean(found) <= 0.005


@pytest.mark.parametrize("kind", ["gauss", "student", "channels", "laplace"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.guards("groups too small for the exact search get a worse palette")
def test_small_groups_are_never_worse_than_by_coremltools(kind: str, bits: int) -> None:
    """Below 10,000 numbers it falls back to an approximate search."""
    for count in (576, 1152, 4608, 9216):
        for seed in range(3):
            x = numbers(kind, count, seed)
            assert squared_error(x, bits) <= stock_error(x, bits) * (1 + 1e-9)


def test_small_groups_of_eight_bits_are_not_worse_than_by_coremltools_either() -> None:
    for kind in ("gauss", "student"):
        x = numbers(kind, 2304)
        assert squared_error(x, 8) <= stock_error(x, 8) * (1 + 1e-9)


def test_few_values_are_kept_exactly() -> None:
    x = np.array([0.5, -0.25, 0.0, -0.0, 0.5, 65504, -65504], np.float16)
    palette = palette_of(x, 4)
    assert np.array_equal(palette.values[palette.indices], x)
    assert np.array_equal(palette_of(np.zeros(9, np.float16), 2).values, np.zeros(4))


def test_one_value_more_than_the_palette_holds_costs_the_least_it_can() -> None:
    x = np.arange(17, dtype=np.float16)
    assert squared_error(x, 4) == pytest.approx(0.5)
    x = np.concatenate([np.full(1000, 1.0), np.linspace(2, 3, 17)]).astype(np.float16)
    assert squared_error(x, 4) <= 1.001 * optimal_error(x, 4)


def test_outliers_of_extreme_size_do_not_spoil_the_rest() -> None:
    x = numbers("gauss", 20_000)
    x[:2] = 65504, -65504
    assert squared_error(x, 4) <= 1.01 * optimal_error(x, 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("scale", [2e-7, 2e-6, 4e-6, 2e-5])
def test_numbers_near_the_smallest_of_fp16_have_near_optimal_palettes(
    bits: int, scale: float
) -> None:
    """They lie on an even grid, so that all cells of equal width cost the same. A layer that has
    hardly learned has such weights. Palettes lie on the grid too, hence the rounded optimum."""
    for seed in range(2):
        x = (numbers("gauss", 82_944, seed).astype(float) / 0.02 * scale).astype(np.float16)
        assert squared_error(x, bits) <= 1.005 * optimal_error(x, bits, rounded=True)


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_a_palette_does_not_depend_on_the_groups_beside_it(bits: int) -> None:
    groups = [numbers(k, n, s) for s, k in enumerate(("gauss", "student")) for n in (640, 5000)]
    together = palettes_of([*groups, numbers("laplace", 30_000)], bits)
    for group, palette in zip(groups, together, strict=False):
        alone = palette_of(group, bits)
        assert np.array_equal(alone.values, palette.values)
        assert np.array_equal(alone.indices, palette.indices)


def test_infinities_and_nan_are_refused() -> None:
    for bad in (np.inf, -np.inf, np.nan):
        for count in (100, 40_000):
            x = numbers("gauss", count)
            x[7] = bad
            with pytest.raises(ConversionError, match="infinite or NaN"):
                palette_of(x, 4)


def test_histogram_is_the_same_whether_sorted_or_counted() -> None:
    few, many = numbers("gauss", 1000), np.tile(numbers("gauss", 1000), 30)
    one, other = histogram(few), histogram(many)
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.codes, other.codes)
    assert np.allclose(30 * one.moment, other.moment)
    assert np.array_equal(np.sort(np.unique(few.astype(float))), np.unique(one.values))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_indices_unpack_to_themselves(bits: int) -> None:
    for count in (1, 7, 8, 1001):
        indices = np.random.RandomState(count).randint(0, 1 << bits, count).astype(np.uint8)
        packed = pack(indices, bits)
        assert packed.size == (count * bits + 7) // 8
        assert np.array_equal(unpack(packed, f"uint{bits}", count), indices)
