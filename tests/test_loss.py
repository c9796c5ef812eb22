"""The nested loss, against formulas written out by hand."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
from backends import Backend
from small import around, normal, plain, random_state

from mdm_apple.config.model import (
    DiffusionConfig,
    LossTarget,
    LossWeighting,
    ModelConfig,
    Prediction,
    ScheduleConfig,
)
from mdm_apple.data.batches import Batch
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.loss import LossParts, batch_loss, nested_loss
from mdm_apple.diffusion.prediction import image_scale
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import base_table, vdm_weights
from mdm_apple.training.settings import TrainConfig

SCALES = (2, 1)
ROWS = 4
SHIFTED = ScheduleConfig("cosine", shift_power=1.0)
ALPHA_BAR = [np.array([0.9, 0.5, 0.2, 0.04]), np.array([0.95, 0.7, 0.4, 0.1])]
X0 = [np.tanh(normal(i, ROWS, 3, 4 * s, 4 * s)) for i, s in enumerate(SCALES)]
EPS = [normal(10 + i, *x.shape) for i, x in enumerate(X0)]
OUT = [normal(20 + i, *x.shape) for i, x in enumerate(X0)]


def column(alpha_bar: np.ndarray) -> np.ndarray:
    return alpha_bar.astype(np.float32)[:, None, None, None]


def loss_of(
    backend: Backend, config: DiffusionConfig, out: list[np.ndarray] | None = None, levels: int = 2
) -> tuple[LossParts, list[int]]:
    """The loss of a network that answers `out`, and the rows it was shown per level."""
    shown: list[int] = []
    answers = (out or OUT)[-levels:]

    def network(x_t: list[Any]) -> list[Any]:
        shown.extend(len(x) for x in x_t)
        return [backend.image(o[: len(x)]) for o, x in zip(answers, x_t, strict=True)]

    parts = nested_loss(
        network,
        [backend.image(x) for x in X0[-levels:]],
        [backend.image(x) for x in EPS[-levels:]],
        [backend.array(column(a)) for a in ALPHA_BAR[-levels:]],
        config,
        SCALES[-levels:],
        backend.ops,
    )
    return parts, shown


def mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a - b) ** 2).reshape(len(a), -1).mean(axis=1)


def close(backend: Backend, got: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(backend.numpy(got), wanted, rtol=2e-5)


def test_squared_errors_of_the_levels_add_up_with_their_weights(backend: Backend) -> None:
    config = DiffusionConfig(SHIFTED, prediction="eps", loss_target="eps", level_weights=(3.0, 0.5))
    parts, shown = loss_of(backend, config)
    assert shown == [ROWS, ROWS]
    close(backend, parts.per_sample, 3 * mse(OUT[0], EPS[0]) + 0.5 * mse(OUT[1], EPS[1]))
    close(backend, parts.mse[0], mse(OUT[0], EPS[0]))
    close(backend, batch_loss(parts.per_sample), backend.numpy(parts.per_sample).mean())


def test_a_weight_of_zero_leaves_a_level_out(backend: Backend) -> None:
    config = DiffusionConfig(SHIFTED, prediction="eps", loss_target="eps", level_weights=(0.0, 1.0))
    close(backend, loss_of(backend, config)[0].per_sample, mse(OUT[1], EPS[1]))


def test_high_levels_of_a_mixed_batch_see_its_first_rows_and_count_for_all(
    backend: Backend,
) -> None:
    config = DiffusionConfig(SHIFTED, prediction="eps", loss_target="eps", mixed_ratio=(1.0, 1.0))
    parts, shown = loss_of(backend, config)
    assert shown == parts.seen == [2, ROWS]
    high, low = mse(OUT[0], EPS[0]), mse(OUT[1], EPS[1])
    wanted = np.array([high[0] / 0.5 + low[0], high[1] / 0.5 + low[1], low[2], low[3]])
    close(backend, parts.per_sample, wanted)
    close(backend, batch_loss(parts.per_sample), high[:2].mean() + low.mean())


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(
    ("prediction", "target"), itertools.product(get_args(Prediction), get_args(LossTarget))
)
def test_a_perfect_network_has_no_loss(
    backend: Backend, prediction: Prediction, target: LossTarget, levels: int
) -> None:
    """Nested as well as plain, whatever is predicted and compared."""
    config = DiffusionConfig(SHIFTED, prediction=prediction, loss_target=target)
    perfect = [
        eps if prediction == "eps" else arithmetic.velocity(x0, eps, column(a))
        for x0, eps, a in zip(X0, EPS, ALPHA_BAR, strict=True)
    ]
    parts, _ = loss_of(backend, config, perfect, levels)
    np.testing.assert_allclose(backend.numpy(parts.per_sample), 0, atol=1e-10)


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_a_loss_of_x0_compares_clean_images_at_every_level(
    backend: Backend, prediction: Prediction
) -> None:
    config = DiffusionConfig(SHIFTED, prediction=prediction, loss_target="x0")
    total = np.zeros(ROWS)
    for x0, eps, out, alpha_bar in zip(X0, EPS, OUT, ALPHA_BAR, strict=True):
        a = alpha_bar[:, None, None, None]
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * eps
        if prediction == "eps":
            estimate = (x_t - (1 - a) ** 0.5 * out) / a**0.5
        else:
            estimate = a**0.5 * x_t - (1 - a) ** 0.5 * out
        total += mse(estimate, x0)
    close(backend, loss_of(backend, config)[0].per_sample, total)


CAPS = {"min_snr": lambda snr: np.minimum(snr, 5), "snr_plus_one": lambda s: np.minimum(s + 1, 5)}


@pytest.mark.parametrize("weighting", sorted(CAPS))
@pytest.mark.parametrize("target", get_args(LossTarget))
def test_snr_weightings_cap_the_error_of_x0_whatever_is_compared(
    backend: Backend, weighting: LossWeighting, target: LossTarget
) -> None:
    config = DiffusionConfig(SHIFTED, loss_target=target, loss_weighting=weighting)
    total = np.zeros(ROWS)
    for x0, eps, out, alpha_bar in zip(X0, EPS, OUT, ALPHA_BAR, strict=True):
        a = alpha_bar[:, None, None, None]
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * eps
        error = mse(a**0.5 * x_t - (1 - a) ** 0.5 * out, x0)
        total += CAPS[weighting](alpha_bar / (1 - alpha_bar)) * error
    np.testing.assert_allclose(
        backend.numpy(loss_of(backend, config)[0].per_sample), total, rtol=1e-4
    )


def test_without_a_shift_images_are_divided_by_their_scale(backend: Backend) -> None:
    config = DiffusionConfig(ScheduleConfig("cosine"), prediction="v", loss_target="v")
    parts, _ = loss_of(backend, config)
    a = column(ALPHA_BAR[0])
    close(backend, parts.x_t[0], a**0.5 * X0[0] / 2 + (1 - a) ** 0.5 * EPS[0])
    close(backend, parts.target[0], a**0.5 * EPS[0] - (1 - a) ** 0.5 * X0[0] / 2)
    assert [image_scale(config, SCALES, i) for i in range(2)] == [2, 1]
    shifted = DiffusionConfig(SHIFTED)
    assert [image_scale(shifted, SCALES, i) for i in range(2)] == [1, 1]


def test_the_output_limit_is_soft_and_only_for_a_plain_network(backend: Backend) -> None:
    config = DiffusionConfig(SHIFTED, prediction="eps", loss_target="eps", output_scale=1.5)
    limited, _ = loss_of(backend, config, levels=1)
    close(backend, limited.per_sample, mse(1.5 * np.tanh(OUT[1] / 1.5), EPS[1]))
    nested, _ = loss_of(backend, config)
    close(backend, nested.per_sample, mse(OUT[0], EPS[0]) + mse(OUT[1], EPS[1]))


def test_weights_of_samples_make_a_weighted_mean(backend: Backend) -> None:
    losses, weights = np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.0, 3.0])
    got = batch_loss(backend.array(losses), backend.array(weights))
    assert float(backend.numpy(got)) == pytest.approx(13 / 4)


def test_variational_weights_count_each_sample_by_its_fall_of_snr(backend: Backend) -> None:
    unet = around(plain(text_dim=None))
    config = ModelConfig(
        unet, side=8, diffusion=DiffusionConfig(SHIFTED, loss_weighting="vdm", loss_target="eps")
    )
    learner = backend.learner(
        config, TrainConfig(1), random_state(unet), lambda: (np.zeros((1, 1, 1)), np.ones((1, 1)))
    )
    times = np.array([30, 700])
    batch = Batch(
        images=np.tanh(normal(0, 2, 3, 8, 8)),
        captions=["", ""],
        micros={},
        indices=np.arange(2),
        times=times,
        noise=[normal(i, 2, 3, side, side) for i, side in enumerate(config.sides)],
    )
    alone = np.array([learner.validate(batch.rows(i, i + 1)) for i in range(2)])
    weights = vdm_weights(base_table(SHIFTED))[times + 1]
    wanted = (weights * alone).sum() / weights.sum()
    assert learner.validate(batch) == pytest.approx(wanted, rel=1e-4)
    assert wanted != pytest.approx(alone.mean(), rel=1e-2)


def test_lower_levels_are_averages_of_squares_of_pixels(backend: Backend) -> None:
    unet = around(around(plain()))
    image = normal(0, 2, 3, 16, 16)
    levels = [backend.numpy(x) for x in build_pyramid(backend.image(image), unet, backend.ops)]
    assert [x.shape[-1] for x in levels] == [16, 8, 4]
    np.testing.assert_array_equal(levels[0], image)
    wanted = image.reshape(2, 3, 4, 4, 4, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(levels[2], wanted, atol=1e-6)
