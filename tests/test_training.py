"""Optimisation steps, averages, and runs that stop, resume, grow and start from one another."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BACKENDS, Backend, predict
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small import (
    CAPTIONS,
    around,
    inner_model,
    noisy_images,
    normal,
    plain,
    random_state,
    random_text,
    save_random_model,
    trainable_model,
)

from mdm_apple.config.model import DiffusionConfig, ModelConfig, ScheduleConfig
from mdm_apple.config.strict_json import as_values
from mdm_apple.data.batches import Batch, BatchPlan
from mdm_apple.data.dataset import DataError
from mdm_apple.data.folder import open_folder
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.storage.model_folder import load_model_config, load_training, load_weights
from mdm_apple.training.learner import PictureLearner, Snapshot, StepMetrics, split_rows
from mdm_apple.training.loop import TrainingDivergedError
from mdm_apple.training.metrics import METRICS, MetricsLog
from mdm_apple.training.parts import check_parts, most_rows, parts_of, rows_of
from mdm_apple.training.run import Run, run_job
from mdm_apple.training.run_folder import LOCK, stop_on_interrupt
from mdm_apple.training.settings import (
    TrainConfig,
    ema_decay_at,
    learning_rate,
)
from mdm_apple.training.start import Job, resumed_config

NO_TEXT = lambda: (np.zeros((1, 1, 1), np.float32), np.ones((1, 1), np.float32))  # noqa: E731


# --- rules ------------------------------------------------------------------------------------


def test_the_rate_warms_up_in_a_line_and_then_stays() -> None:
    config = TrainConfig(steps=1000, lr=1e-3, warmup_steps=10)
    assert [learning_rate(config, s) for s in (0, 1, 2, 5, 10, 999)] == pytest.approx(
        [1e-4, 1e-4, 2e-4, 5e-4, 1e-3, 1e-3]
    )
    assert learning_rate(TrainConfig(steps=5, lr=1e-3, warmup_steps=0), 0) == 1e-3


def test_the_rate_falls_to_zero_along_a_cosine() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup_steps=0, decay_share=0.4)
    assert [learning_rate(config, s) for s in (0, 60, 70, 80, 90, 100)] == pytest.approx(
        [1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]
    )


@given(st.integers(1, 5000), st.integers(0, 100), st.floats(0, 0.99))
def test_the_rate_is_never_negative_nor_above_its_setting(
    steps: int, warmup: int, decay: float
) -> None:
    config = TrainConfig(steps=steps, lr=0.5, warmup_steps=warmup, decay_share=decay)
    for step in {0, steps // 2, steps - 1}:
        assert 0 <= learning_rate(config, step) <= 0.5


def kept_of_the_start(config: TrainConfig) -> float:
    """Share of the first weights in the average after all steps."""
    return math.prod(ema_decay_at(config, s) for s in range(config.steps))


def test_the_average_of_a_short_run_shows_the_run() -> None:
    assert kept_of_the_start(TrainConfig(steps=200)) < 1e-9
    assert kept_of_the_start(TrainConfig(steps=1000, ema_ramp=False)) > 0.9


def test_the_average_ramps_to_its_decay_and_no_further() -> None:
    config = TrainConfig(steps=10**6)
    assert ema_decay_at(config, 0) == pytest.approx(1 / 10)
    assert ema_decay_at(config, 90) == pytest.approx(91 / 100)
    assert ema_decay_at(config, 10**6) == 0.9999


def test_the_average_just_follows_while_it_warms_up() -> None:
    config = TrainConfig(steps=10, ema_decay=0.9, ema_ramp=False, ema_warmup_steps=3)
    assert [ema_decay_at(config, s) for s in range(5)] == [0, 0, 0, 0.9, 0.9]
    assert ema_decay_at(TrainConfig(steps=1, ema_decay=None), 0) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps: expected 1 or more, got 0."),
        ({"lr": 0.0}, "lr: expected a finite number, more than 0, got 0.0."),
        ({"lr": -1.0}, "lr: expected a finite number, more than 0, got -1.0."),
        ({"clip_norm": 0.0}, "clip_norm: expected a finite number, more than 0, got 0.0."),
        ({"weight_decay": -0.1}, "weight_decay: expected a finite number, 0 or more, got -0.1."),
        ({"beta1": 1.0}, "beta1: expected from 0 to below 1, got 1.0."),
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more steps, got -1."),
        ({"ema_warmup_steps": -1}, "ema_warmup_steps: expected 0 or more steps, got -1."),
        ({"sample_every": -1}, "sample_every: expected 0 or more steps, got -1."),
        (
            {"validate_every": 0, "validation_share": 0.1},
            "validate_every: expected 1 or more steps, got 0.",
        ),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_one_sentence(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{"steps": 10, **setting})
    assert str(caught.value) == message


def test_settings_that_turn_something_off_are_taken() -> None:
    TrainConfig(steps=1, warmup_steps=0, ema_warmup_steps=0, sample_every=0, weight_decay=0.0)


# --- rows -------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_processes_and_parts_share_out_every_row_once(world: int, parts: int, each: int) -> None:
    config = TrainConfig(steps=1, batch_size=world * parts * each, accumulate=parts)
    rows = np.stack([rows_of(config, rank, world) for rank in range(world)])
    assert sorted(rows.ravel()) == list(range(config.batch_size))
    first = rows.reshape(world, parts, each)[:, :, 0].ravel()
    assert sorted(first) == list(range(world * parts))  # the first of each part, for mixed batches


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.floats(0, 1))
def test_uneven_parts_share_out_what_the_whole_batch_sees(
    world: int, accumulate: int, size: int, share: float
) -> None:
    world, accumulate = min(world, size), min(accumulate, size)
    config = TrainConfig(steps=1, batch_size=size, accumulate=accumulate)
    parts = [part for rank in range(world) for part in parts_of(config, rank, world)]
    assert sorted(np.concatenate([part.rows for part in parts])) == list(range(size))
    assert sum(part.weight for part in parts) / (world * accumulate) == pytest.approx(1)
    assert max(len(part.rows) for part in parts) == most_rows(config, world)
    (seen,) = zip(*(part.seen([share]) for part in parts), strict=True)
    assert sum(seen) == int(share * size)
    for part, number in zip(parts, seen, strict=True):  # the first rows of the whole batch
        assert (part.rows[:number] < int(share * size)).all()


def test_more_processes_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="a row or more for each of 4 processes, got 3"):
        rows_of(TrainConfig(steps=1, batch_size=3), 0, 4)


# --- steps ------------------------------------------------------------------------------------


def wordless(mixed: tuple[float, ...] | None = None) -> ModelConfig:
    return ModelConfig(
        around(plain(text_dim=None)),
        side=8,
        diffusion=DiffusionConfig(ScheduleConfig("cosine", shift_power=1.0), mixed_ratio=mixed),
    )


def batch_of(config: ModelConfig, rows: int) -> Batch:
    return Batch(
        images=np.tanh(normal(0, rows, 3, config.side, config.side)),
        captions=[""] * rows,
        micros={"scale": np.full(rows, 8, np.float32)},
        indices=np.arange(rows),
        times=np.linspace(20, 900, rows).astype(int),
        noise=[normal(i, rows, 3, side, side) for i, side in enumerate(config.sides)],
    )


def chosen(batch: Batch, rows: np.ndarray) -> Batch:
    parts = [batch.rows(i, i + 1) for i in rows]
    return Batch(
        images=np.concatenate([p.images for p in parts]),
        captions=[c for p in parts for c in p.captions],
        micros={k: np.concatenate([p.micros[k] for p in parts]) for k in batch.micros},
        indices=np.concatenate([p.indices for p in parts]),
        times=np.concatenate([p.times for p in parts]),
        noise=[np.concatenate([p.noise[i] for p in parts]) for i in range(len(batch.noise))],
    )


def learner_for(
    backend: Backend, config: ModelConfig, train: TrainConfig, seed: int = 0
) -> PictureLearner:
    return backend.learner(config, train, random_state(config.model, seed), NO_TEXT)


@pytest.mark.parametrize("mixed", [None, (1.0, 1.0)])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulated_parts_equal_the_whole_batch(
    backend: Backend, parts: int, mixed: tuple[float, ...] | None
) -> None:
    """Loss, norm and gradients (as Adam's first means), with high levels that see half the rows."""
    config, batch = wordless(mixed), batch_of(wordless(), 8)
    results = []
    for accumulate in (1, parts):
        train = TrainConfig(steps=1, batch_size=8, accumulate=accumulate)
        learner = learner_for(backend, config, train)
        metrics = learner.step(chosen(batch, rows_of(train, 0, 1)), 0)
        results.append((metrics, learner.snapshot().optimizer))
    (whole, means), (accumulated, other_means) = results
    assert accumulated.loss == pytest.approx(whole.loss, rel=1e-5)
    assert accumulated.level_losses == pytest.approx(whole.level_losses, rel=1e-5)
    assert accumulated.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    names = [name for name in means if name.startswith("exp_avg.")]
    assert len(names) == len(random_state(config.model))
    largest = max(float(np.abs(means[name]).max()) for name in names)
    for name in names:
        np.testing.assert_allclose(other_means[name], means[name], atol=1e-5 * largest)


def test_parts_are_runs_of_rows() -> None:
    batch, train = batch_of(wordless(), 5), TrainConfig(steps=1, batch_size=5, accumulate=3)
    parts = split_rows(batch, parts_of(train, 0, 1))
    assert [part.indices.tolist() for part in parts] == [[0, 1], [2, 3], [4]]


def test_a_level_that_sees_no_row_of_a_small_batch_reports_a_number(backend: Backend) -> None:
    config = wordless((1.0, 9.0))
    learner = learner_for(backend, config, TrainConfig(steps=1, batch_size=2))
    metrics = learner.step(batch_of(config, 2), 0)
    assert math.isfinite(metrics.loss)
    assert all(math.isfinite(level) for level in metrics.level_losses)
    assert all(np.isfinite(value).all() for value in learner.snapshot().weights.values())


def averages(backend: Backend, train: TrainConfig) -> list[Snapshot]:
    config = wordless()
    learner = learner_for(backend, config, train)
    snapshots = [learner.snapshot()]
    for index in range(4):
        learner.step(batch_of(config, 2), index)
        snapshots.append(learner.snapshot())
    return snapshots


@pytest.mark.parametrize(
    "settings", [{"ema_ramp": False, "ema_warmup_steps": 2}, {"ema_ramp": True}]
)
def test_the_average_follows_its_rule_from_the_first_weights_on(
    backend: Backend, settings: dict[str, Any]
) -> None:
    train = TrainConfig(steps=4, batch_size=2, lr=1e-2, warmup_steps=0, ema_decay=0.8, **settings)
    first, *later = averages(backend, train)
    assert first.ema is not None
    wanted = {k: v.astype(np.float64) for k, v in first.weights.items()}
    for index, snapshot in enumerate(later):
        decay = ema_decay_at(train, index)
        assert snapshot.ema is not None
        for name, weights in snapshot.weights.items():
            wanted[name] = decay * wanted[name] + (1 - decay) * weights
            np.testing.assert_allclose(snapshot.ema[name], wanted[name], atol=1e-6)
    assert any(not np.array_equal(later[-1].weights[k], first.weights[k]) for k in first.weights)


def test_without_a_decay_there_is_no_average(backend: Backend) -> None:
    train = TrainConfig(steps=4, batch_size=2, ema_decay=None)
    assert all(snapshot.ema is None for snapshot in averages(backend, train))


def test_a_long_gradient_is_cut_to_the_longest_allowed(backend: Backend) -> None:
    config = wordless()
    moved = []
    for clip in (1e-3, 1e6):
        train = TrainConfig(steps=1, batch_size=2, clip_norm=clip)
        learner = learner_for(backend, config, train)
        norm = learner.step(batch_of(config, 2), 0).grad_norm
        means = learner.snapshot().optimizer
        squares = [float((v**2).sum()) for k, v in means.items() if k.startswith("exp_avg.")]
        moved.append((math.sqrt(sum(squares)) / (1 - train.beta1), norm))
    assert moved[0][0] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1][0] == pytest.approx(moved[1][1], rel=1e-3)
    assert moved[0][1] == moved[1][1] > 1e-3


def test_restoring_a_snapshot_goes_on_bit_for_bit(backend: Backend) -> None:
    config, train = wordless(), TrainConfig(steps=4, batch_size=2)
    straight = learner_for(backend, config, train)
    for index in range(2):
        straight.step(batch_of(config, 2), index)
    resumed = learner_for(backend, config, train, seed=9)
    resumed.restore(straight.snapshot())
    for learner in (straight, resumed):
        for index in range(2, 4):
            learner.step(batch_of(config, 2), index)
    one, other = straight.snapshot(), resumed.snapshot()
    for a, b in (
        (one.weights, other.weights),
        (one.ema, other.ema),
        (one.optimizer, other.optimizer),
    ):
        assert a is not None
        assert b is not None
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_validation_and_sampling_leave_no_trace_in_training(backend: Backend) -> None:
    config, train = wordless(), TrainConfig(steps=3, batch_size=2, lr=1e-2, warmup_steps=0)
    disturbed, quiet = (learner_for(backend, config, train) for _ in range(2))
    for index in range(3):
        one = disturbed.step(batch_of(config, 2), index)
        assert one.loss == quiet.step(batch_of(config, 2), index).loss
        disturbed.validate(batch_of(config, 2))
        with disturbed.averaged():
            pass
    np.testing.assert_equal(disturbed.snapshot().weights, quiet.snapshot().weights)


# --- runs -------------------------------------------------------------------------------------


def job(out: Path, data: Path, steps: int = 4, **changes: Any) -> Job:
    train = TrainConfig(
        steps=steps,
        batch_size=4,
        lr=1e-3,
        warmup_steps=2,
        save_every=2,
        log_every=1,
        validate_every=3,
        validation_share=0.2,
        seed=3,
    )
    settings: dict[str, Any] = {"config": trainable_model(), "train": train, "quiet": True}
    return Job(data=str(data), out=out, **settings | changes)


def run(backend: Backend, task: Job) -> list[str]:
    said: list[str] = []
    run_job(task, backend.open_learner, said.append)
    return said


def hashes(folder: Path) -> dict[str, Any]:
    listed = json.loads((folder / "hashes.json").read_text())
    listed.pop("training.json")  # it states the number of steps that were asked for
    return listed


def logged(folder: Path, key: str = "loss") -> dict[int, float]:
    """A metric by step; refuses steps that appear twice."""
    entries = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    found = [(entry["step"], entry[key]) for entry in entries if key in entry]
    assert len(found) == len(dict(found))
    return dict(found)


def test_a_resumed_run_ends_bit_identical_and_logs_every_step_once(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(backend, job(whole, pictures, steps=5))
    run(backend, job(parts, pictures, steps=3))
    (parts / METRICS).open("a").write('{"step": 3, "loss": 9}\n{"step": 4, "lo')  # of a killed run
    asked = job(parts, pictures, steps=5, resume=True)
    config, _ = resumed_config(parts, asked.train)
    run(backend, dataclasses.replace(asked, config=config))
    names = {"model", "ema", "text_encoder", "text_encoder_ema", "training"}
    assert {f"{name}.safetensors" for name in names} < set(hashes(whole))
    assert hashes(parts) == hashes(whole)
    assert logged(parts) == logged(whole)
    assert list(logged(whole)) == [0, 1, 2, 3, 4]
    assert logged(whole, "validation_loss")[4] == logged(parts, "validation_loss")[4]


def test_resuming_a_finished_run_changes_nothing(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(backend, job(out, pictures, steps=2))
    before, losses = hashes(out), logged(out)
    asked = job(out, pictures, steps=2, resume=True)
    run(backend, dataclasses.replace(asked, config=resumed_config(out, asked.train)[0]))
    assert hashes(out) == before
    assert logged(out) == losses


def test_resuming_with_other_settings_or_pictures_is_refused(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(backend, job(out, pictures, steps=2))
    asked = job(out, pictures, resume=True)
    with pytest.raises(ConfigError, match=r"lr: .* started with 0\.001, now it is 0\.5"):
        resumed_config(out, dataclasses.replace(asked.train, lr=0.5))
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for number in range(8):
        for suffix in ("png", "txt"):
            name = f"{number:02d}.{suffix}"
            (fewer / name).write_bytes((pictures / name).read_bytes())
    config, _ = resumed_config(out, asked.train)
    with pytest.raises(MdmError, match="trained on other pictures"):
        run(backend, dataclasses.replace(asked, config=config, data=str(fewer)))


def test_nothing_to_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdmError):
        resumed_config(tmp_path / "none", TrainConfig(steps=1))
    with pytest.raises(MdmError, match=r"holds no training\.json"):
        resumed_config(tmp_path, TrainConfig(steps=1))


class Opened:
    """A `fit.OpenLearner` that remembers what was opened and with which weights."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.first: Snapshot | None = None

    def __call__(self, *arguments: Any) -> PictureLearner:
        learner = self._backend.open_learner(*arguments)
        self.first = learner.snapshot()
        return learner


def test_a_run_notes_how_white_it_saw_white_also_where_an_older_one_did_not(
    pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = job(out, pictures, steps=1)
    bright = dataclasses.replace(first.train, white_headroom=0.2)
    run(BACKENDS["torch"](), dataclasses.replace(first, train=bright))
    config = load_model_config(out)
    assert config.white_headroom == 0.2
    older = dataclasses.replace(config, white_headroom=0.0)
    assert "white_headroom" not in as_values(older)  # as runs from before it was noted have it
    again = dataclasses.replace(bright, steps=2)
    run(BACKENDS["torch"](), dataclasses.replace(first, train=again, resume=True, config=older))
    assert load_model_config(out) == config


def test_growing_keeps_what_the_inner_model_does(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    config = trainable_model()
    small = save_random_model(tmp_path / "small", inner_model(config))
    opened = Opened(backend)
    run_job(job(tmp_path / "grown", pictures, steps=1, grow=small), opened, lambda _: None)
    assert opened.first is not None
    state = dict(opened.first.weights)
    trained = load_weights(small)
    for name, value in trained.items():
        np.testing.assert_array_equal(state[f"inner_unet.{name}"], value)
    x_t, text = noisy_images(config.model, 2, side=4), random_text(2, 8)
    text = np.concatenate([text, text], axis=2)
    times, mask = np.array([10, 900]), np.ones((2, 8), np.float32)

    def outputs(model: ModelConfig, weights: Any, images: list[np.ndarray]) -> list[np.ndarray]:
        net = backend.network(model.model, weights)
        inside = [backend.image(x) for x in images]
        out = predict(backend, net, inside, times, text, mask, {})
        return [backend.numpy(level) for level in out]

    grown = outputs(config, state, x_t)
    np.testing.assert_array_equal(grown[1], outputs(inner_model(config), trained, x_t[1:])[0])
    assert (tmp_path / "grown" / "tokenizer.model").read_bytes() == (
        small / "tokenizer.model"
    ).read_bytes()
    encoder = load_weights(small, "text_encoder")
    assert opened.first.encoder is not None
    np.testing.assert_equal(dict(opened.first.encoder), encoder)


def test_growing_around_a_model_of_other_settings_is_refused(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    smaller = inner_model(trainable_model())
    other = dataclasses.replace(smaller, model=dataclasses.replace(smaller.model, num_resnets=(2,)))
    small = save_random_model(tmp_path / "small", other)
    with pytest.raises(ConfigError, match="not an inner level of this one"):
        run(backend, job(tmp_path / "grown", pictures, grow=small))
    assert not (tmp_path / "grown").exists()


def test_init_starts_from_the_averaged_weights_of_a_folder(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    run(backend, job(first, pictures, steps=2))
    config = load_model_config(first)
    opened = Opened(backend)
    run_job(
        job(tmp_path / "tuned", pictures, steps=1, init=first, config=config),
        opened,
        lambda _: None,
    )
    assert opened.first is not None
    ema = load_weights(first, "ema")
    np.testing.assert_equal(dict(opened.first.weights), ema)
    assert opened.first.encoder is not None
    encoder = load_weights(first, "text_encoder_ema")
    np.testing.assert_equal(dict(opened.first.encoder), encoder)
    assert load_model_config(tmp_path / "tuned") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": True, "init": Path("a")}, "resume: "),
        ({"init": Path("a"), "grow": Path("b")}, "init, grow: choose one"),
        ({"init": Path("none")}, "none: no such model folder"),
    ],
)
def test_starts_that_contradict_each_other_are_refused(
    backend: Backend, pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MdmError, match=message):
        run(backend, job(tmp_path / "out", pictures, **changes))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_save(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    class Diverging:
        def __init__(self, learner: PictureLearner) -> None:
            self._learner = learner
            self.rank, self.world = learner.rank, learner.world

        def __getattr__(self, name: str) -> Any:
            return getattr(self._learner, name)

        def step(self, batch: Batch, index: int) -> StepMetrics:
            metrics = self._learner.step(batch, index)
            return metrics if index < 3 else dataclasses.replace(metrics, loss=math.nan)

    def opened(*arguments: Any) -> Any:
        return Diverging(backend.open_learner(*arguments))

    out = tmp_path / "run"
    with pytest.raises(TrainingDivergedError, match="loss is nan at step 3"):
        run_job(job(out, pictures, steps=6), opened, lambda _: None)
    assert load_training(out).meta["step"] == 3  # before the validation
    load_weights(out)


def test_one_picture_validates_a_run_of_mixed_batches(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    """One row is too few for the shares of a training batch."""
    mixed = trainable_model()
    mixed = dataclasses.replace(
        mixed, diffusion=dataclasses.replace(mixed.diffusion, mixed_ratio=(3.0, 1.0))
    )
    task = job(tmp_path / "run", pictures, steps=2, config=mixed)
    train = dataclasses.replace(task.train, validate_every=1, validation_share=0.05)
    run(backend, dataclasses.replace(task, train=train))
    losses = logged(tmp_path / "run", "validation_loss")
    assert set(losses) == {0, 1}
    assert all(math.isfinite(loss) for loss in losses.values())


def test_validation_in_parts_is_that_of_the_whole(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    found = []
    for accumulate in (1, 3):
        task = job(tmp_path / f"run{accumulate}", pictures, steps=1)
        train = dataclasses.replace(
            task.train, lr=1e-30, validate_every=1, validation_share=0.5, accumulate=accumulate
        )
        run(backend, dataclasses.replace(task, train=train))
        found.append(logged(tmp_path / f"run{accumulate}", "validation_loss")[0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_bad_picture_costs_no_step_before_it(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    last = sorted(data.glob("*.png"))[-1]
    task = job(tmp_path / "run", data, steps=40)
    train = dataclasses.replace(task.train, save_every=1000, validation_share=0.0, batch_size=1)
    order = BatchPlan(len(CAPTIONS), 1, train.seed)
    at = next(step for step in range(40) if order.indices(step)[0] == len(CAPTIONS) - 1)
    assert at > 0
    last.write_bytes(last.read_bytes()[:-30])
    with pytest.raises(DataError, match=last.name):
        run(backend, dataclasses.replace(task, train=train))
    assert load_training(tmp_path / "run").meta["step"] == at


def test_captions_that_are_cut_are_counted(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "03.txt").write_text("a " * 200 + "tail")
    config = trainable_model()
    assert config.text is not None
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, max_tokens=64))
    said = run(backend, job(tmp_path / "run", data, steps=1, config=config))
    (cut,) = [text for text in said if text.startswith("captions: ")]
    assert cut.startswith("captions: 1 of 16 are longer than the 64 tokens")
    said = run(backend, job(tmp_path / "fits", pictures, steps=1, config=config))
    assert not [text for text in said if text.startswith("captions: ")]


def test_two_runs_never_share_a_folder(backend: Backend, pictures: Path, tmp_path: Path) -> None:
    task, refused = job(tmp_path / "run", pictures, steps=2), list[str]()

    def opened(*arguments: Any) -> Any:
        learner = backend.open_learner(*arguments)
        step = learner.step

        def second(batch: Batch, index: int) -> StepMetrics:
            with pytest.raises(MdmError, match="another run is at work there") as caught:
                run(backend, task)
            refused.append(str(caught.value))
            return step(batch, index)

        learner.step = second
        return learner

    run_job(task, opened, lambda _: None)
    assert len(refused) == 2
    assert sorted(logged(task.out)) == [0, 1]
    assert not (task.out / LOCK).exists()
    run(backend, task)  # the folder is free again


def test_the_largest_seed_trains(backend: Backend, pictures: Path, tmp_path: Path) -> None:
    task = job(tmp_path / "run", pictures, steps=1)
    seeded = dataclasses.replace(task.train, seed=2**32 - 1)
    run(backend, dataclasses.replace(task, train=seeded))
    assert list(logged(tmp_path / "run")) == [0]


def test_a_sample_grid_is_painted_from_the_averaged_weights(
    backend: Backend, pictures: Path, tmp_path: Path
) -> None:
    task = job(tmp_path / "run", pictures, steps=2)
    run(backend, dataclasses.replace(task, train=dataclasses.replace(task.train, sample_every=2)))
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["step_0000002.png"]


def test_the_log_drops_what_a_resumed_run_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    log = MetricsLog(path, 0)
    for step in range(5):
        log.write(step, StepMetrics(1.0 + step, (1.0,), 2.0), 1e-3, 10.0)
    log.write_validation(4, 0.5)
    path.open("a").write('{"step": 5')
    again = MetricsLog(path, 3)
    again.write(3, StepMetrics(30.0, (1.0,), 2.0), 1e-3, 10.0)
    assert logged(tmp_path) == {0: 1, 1: 2, 2: 3, 3: 30}


@pytest.mark.parametrize(
    ("ratio", "weighting", "accumulate", "said"),
    [
        ((1.0, 99.0), "plain", 1, "needs 100 pictures or more"),
        (None, "vdm", 2, "weighs each picture against the whole batch"),
    ],
)
def test_parts_that_do_not_add_up_to_the_whole_batch_are_refused(
    ratio: tuple[float, ...] | None, weighting: Any, accumulate: int, said: str
) -> None:
    diffusion = DiffusionConfig(mixed_ratio=ratio, loss_weighting=weighting)
    whole = TrainConfig(steps=1, batch_size=12)
    check_parts(whole, dataclasses.replace(diffusion, mixed_ratio=None), 1)
    with pytest.raises(ConfigError, match=said):
        check_parts(dataclasses.replace(whole, accumulate=accumulate), diffusion, 1)


@pytest.mark.parametrize("failing", ["validate", "draw", "log"])
def test_what_fails_between_steps_costs_no_step(
    pictures: Path, tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = BACKENDS["torch"]()
    task = job(tmp_path / "run", pictures, steps=6)
    train = dataclasses.replace(
        task.train, save_every=1000, validate_every=4, sample_every=4, log_every=4
    )

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "log":
        monkeypatch.setattr(MetricsLog, "write", full)
    else:
        monkeypatch.setattr(Run, failing, full)
    with pytest.raises(OSError, match="No space left"):
        run(torch, dataclasses.replace(task, train=train))
    assert load_training(tmp_path / "run").meta["step"] == 4


def test_a_batch_that_no_memory_can_hold_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdm_apple.training.memory_estimate.machine_memory", lambda: 16 * 10**9)
    torch = BACKENDS["torch"]()
    task = job(tmp_path / "run", pictures)
    huge = dataclasses.replace(task.train, batch_size=1 << 20)
    with pytest.raises(ConfigError, match=r"pictures at once need about .* lower it"):
        run(torch, dataclasses.replace(task, train=huge))
    assert not task.out.exists()


def test_a_save_by_another_run_since_the_beginning_is_refused(
    pictures: Path, tmp_path: Path
) -> None:
    torch = BACKENDS["torch"]()
    task = job(tmp_path / "run", pictures, steps=2)

    def opened(*arguments: Any) -> Any:
        run(torch, task)  # another run, which is faster
        return torch.open_learner(*arguments)

    with pytest.raises(MdmError, match="another run has saved there since this one began"):
        run_job(task, opened, lambda _: None)
    kept = hashes(task.out)
    longer = job(task.out, pictures, steps=4, resume=True, config=load_model_config(task.out))
    run(torch, longer)  # it can be gone on with
    assert hashes(task.out) != kept


def test_a_second_signal_at_once_is_the_same_wish_and_a_later_one_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stop_on_interrupt() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        monkeypatch.setattr("mdm_apple.training.run_folder.TOGETHER", -1.0)
        os.kill(os.getpid(), signal.SIGUSR1)  # only a machine sends this, and it may send many
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_machine_that_fails_makes_no_picture_bad(
    pictures: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    dataset = open_folder(data, 8)
    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises((MemoryError, MdmError)) as caught:
        dataset.item(0)
    assert not isinstance(caught.value, DataError)
    with pytest.raises((MemoryError, MdmError)) as caught:
        open_folder(data, 8, skip_bad=True)
    assert not isinstance(caught.value, DataError)
