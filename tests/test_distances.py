"""Distances between sets of pictures, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from small import normal

from mdm_apple.errors import MdmError
from mdm_apple.evaluation.distances import (
    frechet_distance,
    gradient_magnitude,
    kernel_distance,
    layout_features,
    precision_recall,
    squared_distances,
)


def sample(seed: int, rows: int = 300, width: int = 5) -> np.ndarray:
    return normal(seed, rows, width).astype(np.float64)


def test_the_frechet_distance_of_a_moved_set_is_the_square_of_the_move() -> None:
    x, move = sample(0), np.arange(5.0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + move) == pytest.approx(move @ move, rel=1e-9)


def test_the_frechet_distance_of_a_spread_set_is_that_of_gaussians() -> None:
    """For covariances C and diag(s)^2 C with C diagonal: sum of variances times (s - 1)^2."""
    x = sample(0)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    x = (x - x.mean(axis=0)) @ vectors
    spread = np.array([0.5, 1, 2, 3, 1])
    wanted = (values * (spread - 1) ** 2).sum()
    assert frechet_distance(x, x * spread) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(x * spread, x) == pytest.approx(wanted, rel=1e-9)


def test_the_kernel_distance_is_the_mean_over_pairs_without_the_diagonal() -> None:
    x, y = sample(0, 6), sample(1, 4)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 5 + 1) ** 3

    within_x = [k(x[i], x[j]) for i in range(6) for j in range(6) if i != j]
    within_y = [k(y[i], y[j]) for i in range(4) for j in range(4) if i != j]
    across = [k(a, b) for a in x for b in y]
    wanted = np.mean(within_x) + np.mean(within_y) - 2 * np.mean(across)
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    same = [kernel_distance(sample(2 * s), sample(2 * s + 1)) for s in range(30)]
    other = kernel_distance(sample(0), sample(1) + 0.5)
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same)) < 0.1 * other


def test_precision_and_recall_tell_quality_from_variety() -> None:
    real = sample(0)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 1000) == (0.0, 0.0)
    precision, recall = precision_recall(real, 1e-3 * sample(1))  # all alike, amid the real ones
    assert precision == 1.0
    assert recall < 0.05
    precision, recall = precision_recall(real, 10 * sample(1))  # all around, mostly far off
    assert precision < 0.2
    assert recall > 0.8


def test_squared_distances_are_those_of_each_pair() -> None:
    a, b = sample(0, 3), sample(1, 4)
    wanted = [[((p - q) ** 2).sum() for q in b] for p in a]
    np.testing.assert_allclose(squared_distances(a, b), wanted, rtol=1e-12)


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = np.broadcast_to(np.arange(8) * 0.1, (2, 3, 8, 8)).astype(np.float32)
    wanted = 0.1 * 3**0.5 * 7 / 8  # three channels; the far column has no neighbour
    assert gradient_magnitude(ramp) == pytest.approx([wanted, wanted], rel=1e-6)


def test_features_say_which_colour_lies_where() -> None:
    images = np.zeros((1, 3, 16, 16), np.float32)
    images[0, 1, 4:8, 8:12] = 0.5
    colours = layout_features(images)[0, :48].reshape(3, 4, 4)
    assert colours[1, 1, 2] == 0.5
    assert np.count_nonzero(colours) == 1


@pytest.mark.parametrize(("axis", "orientation"), [(3, 0), (2, 2)])
def test_features_say_which_way_an_edge_runs(axis: int, orientation: int) -> None:
    images = np.zeros((1, 3, 16, 16), np.float32)
    np.moveaxis(images, axis, 0)[6:] = 1.0
    edges = layout_features(images)[0, 48:].reshape(4, 4, 4)
    assert edges[orientation].sum() > 1
    assert np.delete(edges, orientation, axis=0).sum() == pytest.approx(0, abs=1e-9)
    bright = layout_features(-images)[0, 48:].reshape(4, 4, 4)
    np.testing.assert_allclose(bright, edges, atol=1e-9)  # the sign of an edge is left out


def test_pictures_that_no_grid_fits_are_refused() -> None:
    for side in (4, 10):
        with pytest.raises(MdmError, match="multiple of 4"):
            layout_features(np.zeros((1, 3, side, side), np.float32))
