"""Training in MLX beside torch: the same weights, losses and treatment of what never learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend, MlxBackend, TorchBackend
from paired import Run, batch_of, nest, no_text
from small import random_state
from tolerances import TRAIN_WEIGHTS

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import idle_parameters
from mdm_apple.training.learner import Snapshot
from mdm_apple.training.settings import TrainConfig

mx = pytest.importorskip("mlx.core")

from mdm_apple.mlx.weights import flat  # noqa: E402

LR = 1e-4
REAL = 1e-8  # of a gradient in some step: below it Adam makes whole steps out of rounding errors


def emoji_run(pictures: Path, steps: int) -> Run:
    train = TrainConfig(
        steps=steps, batch_size=4, lr=LR, warmup_steps=5, embedding_lr_scale=5.0, seed=3
    )
    return Run(str(pictures), steps, train)


def everything(snapshot: Snapshot) -> dict[str, np.ndarray]:
    assert snapshot.encoder is not None
    return dict(snapshot.weights) | {f"text_encoder.{k}": v for k, v in snapshot.encoder.items()}


class LargestGradients(dict[str, np.ndarray]):
    """Per weight of a torch learner, over the steps after which it was called."""

    def __init__(self, learner: Any) -> None:
        super().__init__()
        self._learner = learner

    def __call__(self) -> None:
        for name, parameter in self._learner._named():
            if parameter.grad is not None:
                now = np.abs(parameter.grad.numpy())
                self[name] = np.maximum(self.get(name, 0), now)


def test_twenty_steps_of_the_small_emoji_model_leave_the_weights_of_torch(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three levels, mixed batches, the text encoder learning along with faster embeddings."""
    run = emoji_run(pictures, 20)
    theirs, ours = run.learner(TorchBackend()), run.learner(MlxBackend())
    gradients = LargestGradients(theirs)
    their_losses, losses = run.losses(theirs, gradients), run.losses(ours)
    np.testing.assert_allclose(losses, their_losses, rtol=1e-5)
    one, other = everything(theirs.snapshot()), everything(ours.snapshot())
    real, rest = 0.0, 0.0
    for name, value in one.items():
        error = np.abs(value - other[name])
        counts = gradients[name] >= REAL
        real = max(real, float(error[counts].max(initial=0)))
        rest = max(rest, float(error[~counts].max(initial=0)))
    with capsys.disabled():
        print(f"\n20 steps: weights differ by at most {real:.1e}, the rest by {rest:.1e}", end="")
    assert sum(int((g >= REAL).sum()) for g in gradients.values()) > 0.9 * sum(
        v.size for v in one.values()
    )
    assert real <= TRAIN_WEIGHTS
    assert rest <= sum(5.0 * LR for _ in range(20))
    start = run.start().encoder
    assert start is not None
    moved = np.abs(one["text_encoder.shared.weight"] - start["shared.weight"])
    assert moved.max() > 20 * LR  # so that embeddings learned faster than others may


def test_one_perturbed_weight_shows_after_three_steps(pictures: Path) -> None:
    run = emoji_run(pictures, 3)
    start = run.start()
    assert start.weights is not None
    weights = {name: value.copy() for name, value in start.weights.items()}
    weights["inner_unet.inner_unet.conv_in.weight"][0, 0, 1, 1] += 0.05
    theirs = run.learner(TorchBackend())
    ours = run.learner(MlxBackend(), dataclasses.replace(start, weights=weights))
    their_losses, losses = run.losses(theirs), run.losses(ours)
    assert max(abs(a - b) / b for a, b in zip(losses, their_losses, strict=True)) > 1e-5
    one, other = everything(theirs.snapshot()), everything(ours.snapshot())
    del one["inner_unet.inner_unet.conv_in.weight"]
    assert max(float(np.abs(v - other[k]).max()) for k, v in one.items()) > TRAIN_WEIGHTS


@pytest.mark.slow
def test_over_a_hundred_steps_the_loss_stays_as_near_as_torch_to_itself(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside what another number of threads, and so another order of sums, does to torch."""
    run = emoji_run(pictures, 100)
    one, two = run.losses_with_threads(1), run.losses_with_threads(2)
    ours = run.losses(run.learner(MlxBackend()))
    gap, own = (
        max(abs(a - b) / b for a, b in zip(losses, one, strict=True)) for losses in (ours, two)
    )
    with capsys.disabled():
        print(f"\nloss gap over 100 steps: {gap:.1e}, torch with two threads {own:.1e}", end="")
    assert gap <= 3 * max(own, 1e-5)


# --- what never learns, fewer bits, going on --------------------------------------------------


def trained(
    backend: Backend, config: ModelConfig, train: TrainConfig, state: dict[str, np.ndarray]
) -> tuple[Any, list[float]]:
    """The learner after `train.steps` steps over ten batches, and its losses."""
    learner = backend.learner(config, train, state, no_text)
    size = train.batch_size
    losses = [learner.step(batch_of(config, size, k % 10), k).loss for k in range(train.steps)]
    return learner, losses


def test_weights_that_nothing_reads_neither_decay_nor_have_moments_as_in_torch() -> None:
    config = nest(interp_conditioning=True, mid_blocks=True)
    idle = idle_parameters(config.model)
    assert {name.split(".")[0] for name in idle} == {"interp_layer1", "interp_layer2", "mid_blocks"}
    train = TrainConfig(steps=4, batch_size=2, lr=1e-2, warmup_steps=0, weight_decay=0.5)
    state = random_state(config.model)
    ends = [
        trained(backend, config, train, state)[0].snapshot()
        for backend in (TorchBackend(), MlxBackend())
    ]
    theirs, ours = ends
    assert set(ours.optimizer) == set(theirs.optimizer)
    assert not any(name.split(".", 1)[1] in idle for name in ours.optimizer)
    for name, value in state.items():
        for end in ends:
            if name in idle:
                np.testing.assert_array_equal(end.weights[name], value, err_msg=name)
            else:
                assert np.abs(end.weights[name] - value).max() > 0, name


def test_bf16_training_falls_like_that_of_torch_over_weights_in_fp32() -> None:
    config = nest()
    state = random_state(config.model)
    train = TrainConfig(steps=20, batch_size=2, lr=2e-3, warmup_steps=2, precision="bf16")
    _, theirs = trained(TorchBackend(), config, train, state)
    learner, ours = trained(MlxBackend(), config, train, state)
    _, exact = trained(MlxBackend(), config, dataclasses.replace(train, precision="fp32"), state)
    assert np.mean(ours[-10:]) < 0.9 * np.mean(ours[:10])  # the same ten batches again
    # bf16 has 8 bits: 0.4 % per number
    np.testing.assert_allclose(ours, theirs, rtol=3e-2)
    np.testing.assert_allclose(ours, exact, rtol=3e-2)
    assert max(abs(a - b) / b for a, b in zip(ours, exact, strict=True)) > 1e-5
    weights = flat(learner.net.parameters())
    kept = [weights, learner.ema.weights, *learner.optimizer.moments.values()]
    assert {value.dtype for values in kept for value in values.values()} == {mx.float32}
    kernel = weights["down_blocks.0.resnets.0.conv1.weight"]
    assert (kernel != kernel.astype(mx.bfloat16).astype(mx.float32)).any()


def test_a_run_goes_on_in_the_other_backend() -> None:
    """Five steps in one, five in the other, end where ten in one do."""
    config, state = nest(), random_state(nest().model)
    train = TrainConfig(steps=10, batch_size=4, lr=LR, warmup_steps=5)
    half = dataclasses.replace(train, steps=5)
    whole = trained(TorchBackend(), config, train, state)[0].snapshot()
    for first, second in ((TorchBackend(), MlxBackend()), (MlxBackend(), TorchBackend())):
        before, _ = trained(first, config, half, state)
        after = second.learner(config, train, random_state(config.model, 9), no_text)
        after.restore(before.snapshot())
        for k in range(5, 10):
            after.step(batch_of(config, 4, k), k)
        end = after.snapshot()
        largest = max(np.abs(v).max() for k, v in whole.optimizer.items() if "exp_avg_sq" in k)
        for name, value in whole.weights.items():
            # biases in front of a norm with one channel per group have no gradient
            real = whole.optimizer[f"exp_avg_sq.{name}"] > 1e-10 * largest
            error = np.abs(value - end.weights[name])
            assert error[real].max(initial=0) <= TRAIN_WEIGHTS, name
