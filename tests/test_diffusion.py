"""The arithmetic of diffusion, held to its definitions in float64 NumPy and in every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import Backend
from hypothesis import given
from hypothesis import strategies as st
from small import normal

from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.sampling.walk import apply_threshold

# between log-SNR -12 and 12, beyond what the schedules use of it in training
alpha_bars = st.floats(-12, 12).map(lambda x: 1 / (1 + np.exp(-x))).map(float)
pixels = st.floats(-3, 3)


@given(pixels, pixels, alpha_bars)
def test_v_prediction_round_trips_to_x0(x0: float, eps: float, alpha_bar: float) -> None:
    x_t = arithmetic.add_noise(x0, eps, alpha_bar)
    v = arithmetic.velocity(x0, eps, alpha_bar)
    assert arithmetic.x0_from_v(x_t, v, alpha_bar) == pytest.approx(x0, abs=1e-9)
    assert arithmetic.v_from_x0(x_t, x0, alpha_bar) == pytest.approx(v, abs=1e-9)


@given(pixels, pixels, alpha_bars)
def test_the_exact_noise_gives_x0_back(x0: float, eps: float, alpha_bar: float) -> None:
    x_t = arithmetic.add_noise(x0, eps, alpha_bar)
    assert arithmetic.x0_from_eps(x_t, eps, alpha_bar) == pytest.approx(x0, abs=1e-9)
    assert arithmetic.eps_from_x0(x_t, x0, alpha_bar) == pytest.approx(eps, abs=1e-9)


@given(alpha_bars)
def test_noise_keeps_unit_variance(alpha_bar: float) -> None:
    signal = arithmetic.add_noise(1.0, 0.0, alpha_bar)
    noise = arithmetic.add_noise(0.0, 1.0, alpha_bar)
    assert signal**2 + noise**2 == pytest.approx(1)
    assert arithmetic.snr(alpha_bar) == pytest.approx(signal**2 / noise**2)


pairs = st.tuples(st.floats(-10, 10), st.floats(0.01, 5)).map(
    lambda p: (1 / (1 + float(np.exp(-p[0]))), 1 / (1 + float(np.exp(-p[0] - p[1]))))
)


@given(pixels, pixels, pixels, pairs)
def test_ddim_with_eta_one_is_the_ancestral_step(
    x_t: float, x0: float, noise: float, pair: tuple[float, float]
) -> None:
    ancestral = arithmetic.ddpm_step(x_t, x0, noise, *pair)
    assert arithmetic.ddim_step(x_t, x0, noise, *pair, 1.0) == pytest.approx(ancestral, abs=1e-8)


@given(pixels, pixels, pairs)
def test_noise_of_ddim_with_eta_one_has_the_posterior_variance(
    x_t: float, x0: float, pair: tuple[float, float]
) -> None:
    with_noise = arithmetic.ddim_step(x_t, x0, 1.0, *pair, 1.0)
    without = arithmetic.ddim_step(x_t, x0, 0.0, *pair, 1.0)
    variance = arithmetic.posterior_variance(*pair)
    assert (with_noise - without) ** 2 == pytest.approx(variance, rel=1e-6, abs=1e-12)


@given(pixels, pixels, pairs, st.floats(0, 1))
def test_ddim_lands_on_the_marginal_whatever_eta(
    x0: float, eps: float, pair: tuple[float, float], eta: float
) -> None:
    """Mean sqrt(a_s) x0, variance 1 - a_s, split between the old noise and the new."""
    now, after = pair

    def step(old: float, new: float) -> float:
        return arithmetic.ddim_step(arithmetic.add_noise(x0, old, now), x0, new, now, after, eta)

    mean = step(0, 0)
    assert mean == pytest.approx(after**0.5 * x0, abs=1e-8)
    variance = (step(1, 0) - mean) ** 2 + (step(0, 1) - mean) ** 2
    assert variance == pytest.approx(1 - after, rel=1e-6, abs=1e-9)


@given(pixels, pixels, pairs)
def test_first_order_dpm_solver_is_ddim_without_noise(
    x_t: float, x0: float, pair: tuple[float, float]
) -> None:
    ddim = arithmetic.ddim_step(x_t, x0, 0.0, *pair, 0.0)
    assert arithmetic.dpmpp_step(x_t, x0, *pair) == pytest.approx(ddim, abs=1e-9)


@given(pixels, pixels, alpha_bars)
def test_a_step_to_the_clean_image_returns_it(x_t: float, x0: float, alpha_bar: float) -> None:
    for step in (
        arithmetic.ddpm_step(x_t, x0, 1.0, alpha_bar, 1.0),
        arithmetic.ddim_step(x_t, x0, 1.0, alpha_bar, 1.0, 0.5),
        arithmetic.dpmpp_step(x_t, x0, alpha_bar, 1.0),
    ):
        assert step == pytest.approx(x0, abs=1e-9)


@given(pixels, pixels, st.floats(0.1, 2), st.floats(0.1, 2))
def test_extrapolation_is_exact_for_an_x0_linear_in_log_snr(
    start: float, slope: float, step: float, step_before: float
) -> None:
    """The multistep estimate is x0 half a step ahead of where it was last evaluated."""
    now = start + slope * step_before
    ahead = now + slope * step / 2
    assert arithmetic.dpmpp_extrapolate(now, start, step, step_before) == pytest.approx(ahead)


@given(pixels, pixels)
def test_guidance_one_is_conditional_and_zero_unconditional(with_text: float, without: float):
    assert arithmetic.guide(with_text, without, 1.0) == pytest.approx(with_text, abs=1e-12)
    assert arithmetic.guide(with_text, without, 0.0) == without


@given(pixels, pixels, st.floats(-10, 10))
def test_guidance_is_linear_in_its_scale(with_text: float, without: float, scale: float) -> None:
    expected = (1 - scale) * without + scale * with_text
    assert arithmetic.guide(with_text, without, scale) == pytest.approx(expected, abs=1e-9)


# --- in a backend -----------------------------------------------------------------------------


def test_arrays_mean_the_same_in_every_backend(backend: Backend) -> None:
    x0, eps = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    alpha_bar = np.array([0.9, 0.02], np.float32)[:, None, None, None]

    def through(x: Any, e: Any, a: Any) -> list[Any]:
        x_t = arithmetic.add_noise(x, e, a)
        v = arithmetic.velocity(x, e, a)
        back = arithmetic.x0_from_v(x_t, v, a)
        return [x_t, v, back, arithmetic.x0_from_eps(x_t, e, a), arithmetic.v_from_x0(x_t, x, a)]

    got = through(backend.image(x0), backend.image(eps), backend.array(alpha_bar))
    wanted = through(*(value.astype(np.float64) for value in (x0, eps, alpha_bar)))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(backend.numpy(a), b, atol=1e-5)
    np.testing.assert_allclose(backend.numpy(got[2]), x0, atol=1e-5)


def thresholded(backend: Backend, x0: np.ndarray, kind: Any, signal: float = 1.0) -> np.ndarray:
    return backend.numpy(apply_threshold(backend.image(x0), kind, signal, backend.ops))


def mostly(value: float, others: float, side: int = 8) -> np.ndarray:
    """One picture of `value` with one pixel of `others`."""
    x0 = np.full((1, 3, side, side), value, np.float32)
    x0[0, 0, 0, 0] = others
    return x0


def test_no_threshold_changes_nothing(backend: Backend) -> None:
    x0 = 5 * normal(0, 2, 3, 8, 8)
    np.testing.assert_array_equal(thresholded(backend, x0, "none"), x0)


def test_clip_keeps_pictures_in_range_in_units_of_the_signal(backend: Backend) -> None:
    got = thresholded(backend, mostly(0.4, -3.0), "clip", signal=4.0)
    assert got[0, 0, 0, 0] == -0.25
    assert got[0, 0, 0, 1] == 0.25
    assert thresholded(backend, mostly(0.4, -3.0), "clip")[0, 0, 0, 1] == pytest.approx(0.4)


def test_dynamic_threshold_divides_by_a_quantile_of_at_most_one_hundred(backend: Backend) -> None:
    assert thresholded(backend, mostly(50.0, 10.0), "dynamic")[0, 0, 0, 0] == pytest.approx(0.2)
    got = thresholded(backend, mostly(1000.0, 10.0), "dynamic")
    assert got[0, 0, 0, 0] == pytest.approx(0.1)  # 10 / 100, not 10 / 1000
    assert got[0, 0, 0, 1] == 1


def test_dynamic_if_threshold_divides_by_at_most_one_and_a_half(backend: Backend) -> None:
    assert thresholded(backend, mostly(1.2, 0.3), "dynamic_if")[0, 0, 0, 0] == pytest.approx(0.25)
    got = thresholded(backend, mostly(1000.0, 0.3), "dynamic_if")
    assert got[0, 0, 0, 0] == pytest.approx(0.2)
    assert got[0, 0, 0, 1] == 1


@pytest.mark.parametrize("kind", ["dynamic", "dynamic_if"])
def test_dynamic_thresholds_leave_pictures_in_range_alone(backend: Backend, kind: str) -> None:
    x0 = np.tanh(normal(0, 2, 3, 8, 8))
    np.testing.assert_allclose(thresholded(backend, x0, kind), x0, atol=1e-7)


def test_dynamic_threshold_looks_at_each_picture_alone(backend: Backend) -> None:
    both = np.concatenate([mostly(50.0, 10.0), mostly(0.5, 0.1)])
    got = thresholded(backend, both, "dynamic")
    np.testing.assert_allclose(got[:1], thresholded(backend, both[:1], "dynamic"), rtol=1e-6)
    np.testing.assert_allclose(got[1:], both[1:], rtol=1e-6)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.95, 0.995, 1.0])
def test_quantiles_are_interpolated_as_numpy_does(backend: Backend, quantile: float) -> None:
    x = normal(3, 2, 3, 6, 5)
    got = backend.numpy(backend.ops.abs_quantile(backend.image(x), quantile))
    wanted = np.quantile(np.abs(x).reshape(2, -1), quantile, axis=1)
    assert got.size == 2
    np.testing.assert_allclose(got.reshape(2), wanted, rtol=1e-6)


def test_the_other_operations_agree_with_numpy(backend: Backend) -> None:
    x, plain = normal(4, 2, 3, 8, 8), NumpyOps()
    image = backend.image(x)
    for got, wanted in (
        (backend.ops.avg_pool(image, 4), plain.avg_pool(x, 4)),
        (backend.ops.tanh(image), plain.tanh(x)),
        (backend.ops.pad_rows(image, 5), plain.pad_rows(x, 5)),
        (backend.ops.clip(image, -0.5, None), plain.clip(x, -0.5, None)),
        (backend.ops.clip(image, None, 0.5), plain.clip(x, None, 0.5)),
        (backend.ops.sample_mean(image), plain.sample_mean(x)),
        (backend.ops.pick_frames(image, 4, 4), plain.pick_frames(x, 4, 4)),
    ):
        np.testing.assert_allclose(backend.numpy(got), wanted, atol=1e-6)


def test_frames_are_picked_row_by_row(backend: Backend) -> None:
    """Sixteen frames in a square; every fourth is left, tiled again."""
    frames = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    video = np.kron(frames, np.ones((1, 3, 2, 2), np.float32))
    got = backend.numpy(backend.ops.pick_frames(backend.image(video), 4, 4))
    wanted = np.kron(np.array([[[[0, 4], [8, 12]]]], np.float32), np.ones((1, 3, 2, 2), np.float32))
    np.testing.assert_array_equal(got, wanted)
