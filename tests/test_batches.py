"""Batches depend on (seed, step, row) and on nothing else."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from mdm_apple.config.model import DiffusionConfig, ScheduleConfig
from mdm_apple.config.types import Pixels
from mdm_apple.data.batches import Batch, BatchPlan, Draws, Loader, make_batch, validation_rows
from mdm_apple.data.open import DataError, Dataset, open_dataset

SIDES = (16, 8, 4)
DRAWS = Draws(seed=7, sides=SIDES, diffusion=DiffusionConfig(), caption_dropout=0.3)


@pytest.fixture(scope="module")
def emoji() -> Dataset:
    return open_dataset("twemoji", SIDES[0])


def fields(batch: Batch) -> list[np.ndarray]:
    return [
        batch.images,
        np.array(batch.captions),
        batch.micros["scale"],
        batch.indices,
        batch.times,
        *batch.noise,
    ]


def assert_same(one: Batch, other: Batch) -> None:
    for a, b in zip(fields(one), fields(other), strict=True):
        np.testing.assert_array_equal(a, b)


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader, count))


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 9])
def test_what_steps_have_seen_is_what_they_drew(steps: int):
    plan = BatchPlan(20, 4, 5, held_out=[3, 7])
    drawn = [plan.indices(step) for step in range(steps)]
    assert plan.seen(steps) == {int(index) for rows in drawn for index in rows}


def test_a_batch_has_the_promised_shapes_types_and_ranges(emoji: Dataset):
    batch = make_batch(emoji, np.array([5, 0, 5]), DRAWS, step=0)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == np.float32
    assert [n.shape for n in batch.noise] == [(3, 3, s, s) for s in SIDES]
    assert {n.dtype for n in batch.noise} == {np.dtype(np.float32)}
    assert batch.times.dtype == batch.indices.dtype == np.int64
    expected = emoji.item(5).image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(batch.images[0], expected, atol=1e-6)
    assert batch.images.min() >= -1
    assert batch.images.max() == 1
    assert batch.micros["scale"].tolist() == [16, 16, 16]
    assert len(batch) == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(emoji: Dataset, workers: int):
    plan = BatchPlan(len(emoji), 6, seed=1)
    alone = take(Loader(emoji, plan, DRAWS, workers=0), 8)
    together = take(Loader(emoji, plan, DRAWS, workers=workers), 8)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_ranks_and_accumulation_see_exactly_their_rows_of_the_whole_batch(emoji: Dataset):
    plan = BatchPlan(len(emoji), 7, seed=1)
    whole = take(Loader(emoji, plan, DRAWS, workers=0), 3)
    for rows in ([0, 1, 2], [6, 1, 3], []):
        part = take(Loader(emoji, plan, DRAWS, rows=rows), 3)
        for one, other in zip(part, whole, strict=True):
            assert len(one) == len(rows)
            for place, row in enumerate(rows):
                assert_same(one.rows(place, place + 1), other.rows(row, row + 1))


def test_resuming_at_a_step_continues_the_run(emoji: Dataset):
    plan = BatchPlan(100, 30, seed=3)
    through = take(Loader(emoji, plan, DRAWS), 9)
    resumed = take(Loader(emoji, BatchPlan(100, 30, seed=3), DRAWS, start_step=5), 4)
    for one, other in zip(resumed, through[5:], strict=True):
        assert_same(one, other)


def test_every_epoch_visits_each_picture_once_in_another_order():
    plan = BatchPlan(10, 4, seed=0)
    stream = np.concatenate([plan.indices(step) for step in range(10)])
    epochs = stream.reshape(4, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({epoch.tobytes() for epoch in epochs}) == 4
    assert (BatchPlan(10, 4, seed=1).indices(0) != plan.indices(0)).any()


def test_a_batch_may_be_larger_than_the_data_set():
    counts = np.bincount(BatchPlan(3, 32, seed=0).indices(2))
    assert counts.sum() == 32
    assert counts.max() - counts.min() <= 2


def test_noise_is_standard_normal_and_independent_between_rows_levels_and_steps(emoji: Dataset):
    draws = Draws(5, (16, 16), DiffusionConfig())
    batches = [make_batch(emoji, [0] * 64, draws, step) for step in (0, 1)]
    vectors = np.stack([n.reshape(64, -1) for b in batches for n in b.noise]).reshape(256, -1)
    assert abs(vectors.mean()) < 0.01
    assert abs(vectors.std() - 1) < 0.01
    correlation = np.corrcoef(vectors) - np.eye(256)
    assert np.abs(correlation).max() < 0.2, "768 values each: 5.5 standard errors"


def test_an_inner_level_keeps_its_noise_when_a_level_is_grown_around_it(emoji: Dataset):
    small = make_batch(open_dataset("twemoji", 8), [1, 2], Draws(7, (8, 4), DRAWS.diffusion), 4)
    grown = make_batch(emoji, [1, 2], DRAWS, 4)
    for one, other in zip(small.noise, grown.noise[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(small.times, grown.times)


def test_white_headroom_lifts_pure_white_and_nothing_else():
    pixels = np.full((2, 2, 3), 255, np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0] = 254, (255, 255, 254), 0
    dots = Dataset(2, ["dots"], lambda index: (pixels.copy(), 2.0), "none")
    plain = make_batch(dots, [0], Draws(0, (2,), DiffusionConfig()), 0).images
    lifted = make_batch(dots, [0], Draws(0, (2,), DiffusionConfig(), white_headroom=0.2), 0).images
    np.testing.assert_array_equal(plain[0, :, 1, 1], [1, 1, 1])
    np.testing.assert_allclose(lifted[0, :, 1, 1], [1.2, 1.2, 1.2], rtol=1e-6)
    lifted[0, :, 1, 1] = 1
    np.testing.assert_array_equal(lifted, plain)


def times_of(emoji: Dataset, diffusion: DiffusionConfig, dropout: float = 0.0) -> Batch:
    return make_batch(emoji, [0] * 4000, Draws(0, (1,), diffusion, dropout), 0)


@pytest.fixture(scope="module")
def dot() -> Dataset:
    pixel = np.zeros((1, 1, 3), np.uint8)
    return Dataset(1, ["dot"], lambda index: (pixel.copy(), 1.0), "none")


def test_timesteps_are_uniform_over_the_whole_table(dot: Dataset):
    times = times_of(dot, DiffusionConfig(ScheduleConfig(num_steps=10))).times
    counts = np.bincount(times, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 320
    assert counts.max() < 480


def test_the_high_noise_share_comes_from_the_top_of_the_table(dot: Dataset):
    diffusion = DiffusionConfig(
        ScheduleConfig(num_steps=1000), high_noise_share=0.5, high_noise_start=0.9
    )
    times = times_of(dot, diffusion).times
    assert abs((times >= 900).mean() - 0.55) < 0.03
    assert times.max() == 999
    assert times.min() < 5
    every = times_of(dot, DiffusionConfig(high_noise_share=1.0, high_noise_start=0.85)).times
    assert every.min() == 850


def test_caption_dropout_empties_its_share_and_changes_no_other_draw(dot: Dataset):
    none, some, all_ = (times_of(dot, DiffusionConfig(), share) for share in (0.0, 0.1, 1.0))
    assert set(none.captions) == {"dot"}
    assert set(all_.captions) == {""}
    assert abs(some.captions.count("") / 4000 - 0.1) < 0.02
    np.testing.assert_array_equal(none.times, some.times)
    np.testing.assert_array_equal(none.noise[0], some.noise[0])


def test_held_out_rows_are_fixed_and_never_trained_on():
    held = validation_rows(50, 0.1, seed=4)
    assert len(held) == 5
    assert held.tolist() == sorted(set(held.tolist()))
    np.testing.assert_array_equal(held, validation_rows(50, 0.1, seed=4))
    assert held.tolist() != validation_rows(50, 0.1, seed=5).tolist()
    assert len(validation_rows(50, 0.0, seed=4)) == 0
    assert len(validation_rows(50, 0.001, 4)) == 1
    plan = BatchPlan(50, 9, seed=0, held_out=held)
    seen = {int(i) for step in range(30) for i in plan.indices(step)}
    assert plan.epoch_len == 45
    assert seen == set(range(50)) - set(held.tolist())


def batch_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("batches")]


def test_a_closed_loader_leaves_no_thread_and_yields_nothing(emoji: Dataset):
    loader = Loader(emoji, BatchPlan(len(emoji), 4, seed=0), DRAWS, workers=3)
    next(loader)
    assert batch_threads()
    loader.close()
    loader.close()
    assert not batch_threads()
    assert list(loader) == []


def test_a_loader_with_an_end_stops_there(emoji: Dataset):
    plan = BatchPlan(len(emoji), 4, seed=0)
    for workers in (0, 2):
        loader = Loader(emoji, plan, DRAWS, start_step=2, stop_step=7, workers=workers)
        assert [b.indices.tolist() for b in loader] == [
            plan.indices(s).tolist() for s in range(2, 7)
        ]
        assert not batch_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_raises_reaches_the_consumer_at_its_step(workers: int):
    plan = BatchPlan(6, 1, seed=0)
    bad = int(plan.indices(3)[0])

    def read(index: int) -> tuple[Pixels, float]:
        if index == bad:
            raise DataError("bad.png: cannot be read.")
        return np.zeros((16, 16, 3), np.uint8), 16.0

    loader = Loader(Dataset(16, ["x"] * 6, read, "none"), plan, DRAWS, workers=workers)
    for _ in range(3):
        next(loader)
    with pytest.raises(DataError, match=r"bad\.png"):
        next(loader)
    assert not batch_threads()


def test_pictures_beyond_the_memory_limit_are_read_each_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mdm_apple.data.dataset.MAX_CACHE_BYTES", 2 * 3)
    reads: list[int] = []

    def read(index: int) -> tuple[Pixels, float]:
        reads.append(index)
        return np.full((1, 1, 3), index, np.uint8), float(index)

    dataset = Dataset(1, ["a", "b", "c"], read, "none")
    for _ in range(2):
        assert [dataset.item(i).image[0, 0, 0] for i in range(3)] == [0, 1, 2]
        assert [dataset.item(i).scale for i in range(3)] == [0, 1, 2]
    assert reads.count(0) == reads.count(1) == 1
    assert reads.count(2) == 4


def test_impossible_requests_are_refused(emoji: Dataset, tmp_path: Path):
    plan = BatchPlan(10, 4, seed=0)
    for build in (
        lambda: BatchPlan(0, 4, seed=0),
        lambda: BatchPlan(2, 4, seed=0, held_out=[0, 1]),
        lambda: BatchPlan(10, 0, seed=0),
        lambda: BatchPlan(10, 4, seed=-1),
        lambda: Draws(2**32, SIDES, DiffusionConfig()),
        lambda: Draws(0, (), DiffusionConfig()),
        lambda: Draws(0, SIDES, DiffusionConfig(), caption_dropout=1.5),
        lambda: Draws(0, SIDES, DiffusionConfig(), white_headroom=1.0),
        lambda: Loader(emoji, plan, DRAWS, rows=[2, 4]),
        lambda: Loader(emoji, plan, DRAWS, start_step=-1),
        lambda: Loader(emoji, plan, DRAWS, workers=-1),
        lambda: make_batch(emoji, [0], Draws(0, (32, 16), DiffusionConfig()), 0),
        lambda: validation_rows(10, 1.0, seed=0),
        lambda: validation_rows(1, 0.5, seed=0),
        lambda: open_dataset("twemoji", 0),
        lambda: open_dataset(str(tmp_path), 8),
    ):
        with pytest.raises(DataError):
            build()
