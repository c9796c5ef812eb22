"""Orders of shards: each batch a function of (seed, step), whoever asks, and evenly mixed."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from shard_files import index_of, write_shards

from mdm_apple.config.presets import preset
from mdm_apple.data.batches import Draws, Loader, Plan
from mdm_apple.data.dataset import DataError
from mdm_apple.data.shards.open_index import OpenIndex
from mdm_apple.data.shards.permutation import Permutation
from mdm_apple.data.shards.plans import LanePlan, UniformPlan, plan_of, shards_held_out
from mdm_apple.data.shards.shard_pictures import ShardPictures
from mdm_apple.training.parts import rows_of
from mdm_apple.training.settings import TrainConfig

NONE = np.empty(0, np.int64)
Ends = NDArray[np.int64]


def starts_of(counts: list[int]) -> Ends:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def lanes(starts: Ends, batch_size: int, seed: int = 0) -> LanePlan:
    plan = plan_of("lanes", starts, batch_size, seed, NONE)
    assert isinstance(plan, LanePlan)
    return plan


# --- permutation --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_a_permutation_has_each_number_once(count: int) -> None:
    for key in range(3):
        permutation = Permutation(count, 7, key)
        assert sorted(map(permutation, range(count))) == list(range(count))


def test_permutations_are_as_even_as_numpys() -> None:
    """How often a position of 10 holds a number, over 3000 permutations: chi-squared with 81."""
    counts = np.zeros((10, 10))
    random = np.zeros((10, 10))
    draw = np.random.RandomState(0)
    for key in range(3000):
        permutation = Permutation(10, key)
        for place, (ours, theirs) in enumerate(
            zip(map(permutation, range(10)), draw.permutation(10), strict=True)
        ):
            counts[place, ours] += 1
            random[place, theirs] += 1
    chi = [float(((some - 300) ** 2 / 300).sum()) for some in (counts, random)]
    assert max(chi) < 81 + 5 * np.sqrt(2 * 81)
    counts[0, 0] += 150  # the twin: one number that stays in its place a little too often
    assert ((counts - 300) ** 2 / 300).sum() > 81 + 5 * np.sqrt(2 * 81)


def test_neighbours_do_not_stay_neighbours() -> None:
    order = np.array([*map(Permutation(50_000, 1), range(50_000))])
    apart = np.abs(np.diff(order))
    assert np.mean(apart) == pytest.approx(50_000 / 3, rel=0.02)  # as of random pairs
    assert np.corrcoef(order[:-1], order[1:])[0, 1] == pytest.approx(0, abs=0.02)


def test_a_permutation_never_changes() -> None:
    """Runs are resumed on other machines and later versions."""
    permutation = Permutation(1000, 1, 2, 3)
    assert [permutation(place) for place in (0, 1, 2, 998, 999)] == FIXED


FIXED = [364, 806, 598, 171, 215]


# --- lanes --------------------------------------------------------------------------------------

COUNTS = [100 + 7 * (shard % 5) for shard in range(96)]  # unequal shards


def test_each_sample_comes_once_in_each_epoch_of_its_lane() -> None:
    starts = starts_of(COUNTS)
    plan = lanes(starts, 96)
    assert plan.lanes == 48
    total = int(starts[-1])
    longest = -(-total // 96) * 2 + 20  # steps, for two epochs of each lane and a little more
    seen: dict[int, list[int]] = {lane: [] for lane in range(plan.lanes)}
    for step in range(longest):
        for row, sample in enumerate(plan.indices(step)):
            seen[row % plan.lanes].append(int(sample))
    everything: Counter[int] = Counter()
    for found in seen.values():
        length = len(set(found))
        assert len(set(found[:length])) == length == len(set(found[length : 2 * length]))
        assert found[:length] != found[length : 2 * length]
        everything.update(found[:length])
    assert everything == Counter(range(total))


@pytest.mark.parametrize(("world", "reads"), [(1, 1.0), (8, 1.0), (16, 1.0), (48, 1.0)])
def test_a_shard_is_read_by_one_process_where_their_number_divides_the_lanes(
    world: int, reads: float
) -> None:
    plan, starts = lanes(starts_of(COUNTS), 96), starts_of(COUNTS)
    readers: set[tuple[int, int]] = set()
    for step in range(int(starts[-1]) // 96 + 1):
        shards = np.searchsorted(starts, plan.indices(step), "right") - 1
        readers |= {(row % world, int(shard)) for row, shard in enumerate(shards)}
    assert len(readers) / len(COUNTS) == reads


def test_every_process_reads_every_shard_in_a_uniform_order() -> None:
    starts = starts_of(COUNTS)
    plan = plan_of("uniform", starts, 96, 0, NONE)
    readers: set[tuple[int, int]] = set()
    for step in range(int(starts[-1]) // 96 + 1):
        shards = np.searchsorted(starts, plan.indices(step), "right") - 1
        readers |= {(row % 8, int(shard)) for row, shard in enumerate(shards)}
    assert len(readers) / len(COUNTS) > 7


def test_a_uniform_epoch_has_each_sample_once() -> None:
    starts = starts_of([3, 0, 500, 1, 2000])
    plan = plan_of("uniform", starts, 7, 5, NONE)
    assert isinstance(plan, UniformPlan)
    found = np.concatenate([plan.indices(step) for step in range(2 * 2504 // 7 + 1)])
    first, second = found[:2504], found[2504 : 2 * 2504]
    assert sorted(first) == sorted(second) == list(range(2504))
    assert (first != second).any()


class InOrder:
    """The source as it lies."""

    batch_size = 1024

    def indices(self, step: int, rows: object = None) -> Ends:
        return np.arange(step * 1024, (step + 1) * 1024)


def class_variance(plan: Plan, total: int, classes: int) -> float:
    """Variance of the counts of classes in batches, over a binomial's; the source is sorted."""
    steps = total // plan.batch_size
    counts = np.zeros((steps, classes))
    for step in range(steps):
        labels = plan.indices(step) * classes // total
        counts[step] = np.bincount(labels, minlength=classes)
    share = 1 / classes
    return float(counts.var() / (plan.batch_size * share * (1 - share)))


def test_lanes_mix_a_source_that_is_sorted_by_class() -> None:
    """The bound of the specification is 2.0; in the order of the shards it is far above."""
    starts = starts_of([50] * 1200)
    found = class_variance(lanes(starts, 1024), 60_000, 10)
    even = class_variance(plan_of("uniform", starts, 1024, 0, NONE), 60_000, 10)
    print(f"variance of class counts: lanes {found:.2f}, uniform {even:.2f}, binomial 1")
    assert found <= 2.0
    assert even <= 1.2

    assert class_variance(InOrder(), 60_000, 10) > 100


@pytest.mark.parametrize(
    ("counts", "batch", "expected"),
    [
        ([1000] * 1200, 1024, 64),
        ([1000] * 20, 64, 4),  # with 16 lanes some would have two shards and others one
        ([1000, 1000, 10], 6, 2),  # in a lane of their own, ten would be seen far too often
        ([1000, 1000, 1000], 32, 1),
        ([1000] * 4, 32, 4),
        ([5], 32, 1),
    ],
)
def test_lanes_are_as_many_as_can_be_equally_long(
    counts: list[int], batch: int, expected: int
) -> None:
    assert lanes(starts_of(counts), batch).lanes == expected


def test_a_run_keeps_its_number_of_lanes() -> None:
    starts = starts_of([1000] * 20)
    kept = plan_of("lanes", starts, 64, 0, NONE, 16)
    assert isinstance(kept, LanePlan)
    assert kept.lanes == 16
    assert (kept.indices(0) != lanes(starts, 64).indices(0)).any()
    for impossible in (0, -1, 3, 32):
        with pytest.raises(DataError, match="lanes: expected one of"):
            plan_of("lanes", starts, 64, 0, NONE, impossible)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    starts = starts_of(COUNTS)
    assert (lanes(starts, 96, 0).indices(3) == lanes(starts, 96, 0).indices(3)).all()
    assert (lanes(starts, 96, 0).indices(3) != lanes(starts, 96, 1).indices(3)).mean() > 0.9


def test_held_out_shards_are_never_seen() -> None:
    starts = starts_of(COUNTS)
    held = shards_held_out(len(COUNTS), 0.1, 0)
    assert len(held) == 10
    for order in ("lanes", "uniform"):
        plan = plan_of(order, starts, 96, 0, held)
        found = np.concatenate([plan.indices(step) for step in range(130)])
        shards = set((np.searchsorted(starts, found, "right") - 1).tolist())
        assert shards == set(range(96)) - set(held.tolist())
    with pytest.raises(DataError, match="holds out whole shards, and there is one"):
        shards_held_out(1, 0.1, 0)


# --- batches ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ShardPictures:
    shards = write_shards(tmp_path_factory.mktemp("lanes") / "shards", 48, 2)
    return ShardPictures(OpenIndex(index_of(shards)), 16)


DRAWS = Draws(3, (16, 8), preset("tiny").diffusion, caption_dropout=0.1)


def batch_hashes(
    pictures: ShardPictures, plan: LanePlan, world: int, workers: int, steps: int
) -> list[str]:
    """A hash of each whole batch, put together from the rows of all processes."""
    settings = TrainConfig(steps=steps, batch_size=plan.batch_size)
    rows_by_step: list[dict[int, bytes]] = [{} for _ in range(steps)]
    for rank in range(world):
        rows = rows_of(settings, rank, world)
        with Loader(pictures, plan, DRAWS, rows=rows, stop_step=steps, workers=workers) as loader:
            for step, batch in enumerate(loader):
                for place, row in enumerate(rows):
                    parts = [batch.images[place].tobytes(), batch.captions[place].encode()]
                    parts += [batch.times[place].tobytes(), batch.noise[0][place].tobytes()]
                    rows_by_step[step][int(row)] = b"".join(parts)
    return [
        hashlib.sha256(b"".join(rows[row] for row in sorted(rows))).hexdigest()
        for rows in rows_by_step
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 8, 48])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_batches_depend_on_neither_processes_nor_workers(
    pictures: ShardPictures, world: int, workers: int
) -> None:
    plan = lanes(pictures.index.starts, 48)
    assert plan.lanes == 48
    found = batch_hashes(pictures, plan, world, workers, 3)
    assert found == batch_hashes(pictures, plan, 1, 0, 3)
    assert len(set(found)) == 3


def test_another_seed_gives_other_batches(pictures: ShardPictures) -> None:
    plans = [lanes(pictures.index.starts, 48, seed) for seed in (0, 1)]
    assert batch_hashes(pictures, plans[0], 1, 0, 1) != batch_hashes(pictures, plans[1], 1, 0, 1)
