"""Scenes as data: what they show, what is said of them, what is never trained, and the stream."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.data.batches import Batch, BatchPlan, Draws, Loader, RowStream, make_batch
from mdm_apple.data.dataset import DataError, Dataset, Item, with_captions
from mdm_apple.data.open import open_dataset
from mdm_apple.data.scenes.choose_objects import choose_objects
from mdm_apple.data.scenes.components import components
from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.draw_scene import draw_related, draw_scene, picture_of, show
from mdm_apple.data.scenes.drawings import TURN, Drawings, hue_of, nearest_color
from mdm_apple.data.scenes.factors import (
    BACKGROUNDS,
    CANVAS,
    COLORS,
    GAP,
    NUMBERS,
    PLACES,
    RELATIONS,
    SMALLEST,
    Placed,
    Scene,
    Stated,
)
from mdm_apple.data.scenes.held_out import is_held_out, missed, missed_pairs
from mdm_apple.data.scenes.objects import by_noun, drawing_paths, objects
from mdm_apple.data.scenes.open_scenes import SceneRows
from mdm_apple.data.scenes.words import is_trained, other_words
from mdm_apple.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

DRAWS = Draws(seed=7, sides=(64,), diffusion=DiffusionConfig())
BATCHES, ROWS = 10_000, 4
PICTURES = 1 << 32  # the stream of a row's picture (data/batches.py)


@pytest.fixture(scope="module")
def rows() -> SceneRows:
    return SceneRows(CANVAS)


@pytest.fixture(scope="module")
def scenes_data() -> Dataset:
    return open_dataset("scenes", CANVAS)


def dice(seed: int) -> Dice:
    return Dice(np.random.Generator(np.random.Philox(key=[seed, 1])))


def trained(rows: SceneRows, batches: int, size: int) -> Iterator[Scene]:
    """The scenes of the first batches of a run, as `make_batch` draws them."""
    plan, stream = BatchPlan(rows.scenes.stop, size, seed=1), RowStream(1)
    for step in range(batches):
        for row, index in enumerate(plan.indices(step).tolist()):
            if index in rows.scenes:
                yield rows.scene(index, Dice(stream.at(PICTURES, row, step)))


@pytest.fixture(scope="module")
def seen(rows: SceneRows) -> list[Scene]:
    return list(trained(rows, BATCHES, ROWS))


# --- objects ------------------------------------------------------------------------------------


def test_the_list_of_objects_is_what_its_rule_chooses() -> None:
    assert choose_objects() == objects()


def test_there_are_128_objects_of_which_32_take_part_in_relations() -> None:
    assert len(objects()) == len(by_noun()) == 128
    assert sum(thing.related for thing in objects()) == 32
    assert len({thing.emoji for thing in objects()}) == 128
    assert all(thing.one != thing.many for thing in objects())
    assert sum(thing.color is not None for thing in objects()) > 60


@cache
def drawings() -> Drawings:
    return Drawings(drawing_paths())


def hues(noun: str, color: str | None) -> np.ndarray:
    """Indices of the six colours that the coloured pixels of a drawing are nearest to."""
    pixels = np.asarray(drawings().sized(noun, color, 40)).astype(np.int64)
    solid = pixels[pixels[..., 3] > 200][:, :3]
    colored = solid[solid.max(axis=1) - solid.min(axis=1) > 70]
    return nearest_color(hue_of(colored))


def test_an_object_of_one_hue_takes_each_of_the_six_colors() -> None:
    for thing in objects()[::3]:
        if thing.color is not None:
            for place, color in enumerate(COLORS):
                votes = np.bincount(hues(thing.one, color), minlength=6)
                assert votes.argmax() == place, (thing.one, color)
    own = {int(np.bincount(hues(noun, None)).argmax()) for noun in ("heart", "tree", "whale")}
    assert len(own) == 3, "their own colours stay apart"


def test_hues_of_pure_colors_are_at_their_sixths() -> None:
    pure = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)]
    assert hue_of(np.array(pure)).tolist() == [k * TURN // 6 for k in range(6)]


def test_components_are_those_of_another_library() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.RandomState(0)
    for _ in range(60):
        mask = random.rand(23, 31) < random.choice([0.1, 0.3, 0.5, 0.7])
        labels, _count = ndimage.label(mask, np.ones((3, 3)))
        wanted = sorted(
            (int((labels == k).sum()), where[1].start, where[0].start, where[1].stop, where[0].stop)
            for k, where in enumerate(ndimage.find_objects(labels), 1)
        )
        got = sorted((c.area, c.left, c.top, c.right, c.bottom) for c in components(mask))
        assert got == wanted
    assert components(np.zeros((4, 4), bool)) == []


# --- what is trained, and what never is -----------------------------------------------------------


def shows_missed(scene: Scene) -> bool:
    return is_held_out(scene.background, scene.placed, scene.place, scene.stated.relation)


def test_ten_thousand_batches_show_nothing_that_is_held_out(seen: list[Scene]) -> None:
    assert not any(map(shows_missed, seen))
    assert 0.58 < len(seen) / (BATCHES * ROWS) < 0.62


def test_what_is_held_out_is_noticed() -> None:
    """The twin: each held-out value, put into a scene, is found."""
    miss = missed()["star"]
    numbers = [n for n in NUMBERS if n != miss.number]
    fine = show(Stated("star", number=1, place=next(p for p in PLACES if p != miss.place)), dice(1))
    assert not shows_missed(fine)
    assert shows_missed(replace(fine, background=miss.background))
    assert shows_missed(replace(fine, place=miss.place))
    assert shows_missed(replace(fine, placed=(replace(fine.placed[0], color=miss.color),)))
    assert shows_missed(show(Stated("star", number=miss.number), dice(2)))
    assert not any(shows_missed(show(Stated("star", number=n), dice(n))) for n in numbers)
    for relation, pairs in missed_pairs().items():
        one, other = min(pairs)
        stated = Stated(one, number=1, relation=relation, other=other)
        assert shows_missed(show(stated, dice(3)))


def test_everything_that_is_not_held_out_is_trained(seen: list[Scene]) -> None:
    alone = [s for s in seen if s.stated.relation is None]
    found = {
        "number": {(s.placed[0].noun, len(s.placed)) for s in alone},
        "background": {(s.placed[0].noun, s.background) for s in alone},
        "place": {(s.placed[0].noun, s.place) for s in alone if s.place},
        "color": {(s.placed[0].noun, s.placed[0].color) for s in alone if s.placed[0].color},
    }
    assert {name: len(some) for name, some in found.items()} == {
        "number": 128 * 3,
        "background": 128 * 7,
        "place": 128 * 4,
        "color": sum(thing.color is not None for thing in objects()) * 5 + 1,  # all of hearts
    }
    related = Counter(s.stated.relation for s in seen if s.stated.relation)
    assert set(related) == set(RELATIONS)
    assert 0.23 < related.total() / len(seen) < 0.27


def test_a_quarter_of_the_ordered_pairs_misses_each_relation_from_both_sides() -> None:
    for relation, pairs in missed_pairs().items():
        assert len(pairs) == 32 * 31 // 4, relation
    left, right = missed_pairs()["left of"], missed_pairs()["right of"]
    assert {(b, a) for a, b in left} == right
    assert left != missed_pairs()["above"]


def test_what_an_object_misses_is_spread_over_all_values() -> None:
    every = missed().values()
    assert set(Counter(miss.number for miss in every)) == {2, 3, 4}
    assert set(Counter(miss.background for miss in every)) == set(BACKGROUNDS) - {"white"}
    assert set(Counter(miss.color for miss in every)) == {*COLORS, None}
    assert set(Counter(miss.place for miss in every)) == set(PLACES)
    assert all(missed()[thing.one].color != thing.color for thing in objects() if thing.color)


def test_no_drawing_by_name_shows_what_its_object_misses(rows: SceneRows) -> None:
    plain = {caption.lower() for caption in rows.captions()[: rows.scenes.start]}
    assert {"blue heart", "green apple", "two hearts"} <= plain
    for noun, miss in missed().items():
        many = by_noun()[noun].many
        number = {2: "two", 3: "three", 4: "four"}[miss.number]
        assert not any(f"{miss.color} {noun}" in caption for caption in plain), noun
        assert f"{number} {many}" not in plain


# --- geometry and captions ------------------------------------------------------------------------


def gap_between(one: Placed, other: Placed) -> int:
    x = max(one.left, other.left) - min(one.left + one.size, other.left + other.size)
    y = max(one.top, other.top) - min(one.top + one.size, other.top + other.size)
    return max(x, y)


def test_objects_are_large_enough_inside_the_picture_and_apart(seen: list[Scene]) -> None:
    for scene in seen:
        for thing in scene.placed:
            assert thing.size >= SMALLEST
            assert min(thing.left, thing.top) >= 1
            assert max(thing.left, thing.top) + thing.size <= CANVAS - 1
        assert all(gap_between(a, b) >= GAP for a, b in combinations(scene.placed, 2)), scene


def test_a_relation_is_true_by_a_wide_margin(seen: list[Scene]) -> None:
    for scene in seen:
        if scene.stated.relation is not None:
            (x, y), (u, v) = (thing.center for thing in scene.placed)
            along, across = (
                (x - u, y - v) if scene.stated.relation.endswith("of") else (y - v, x - u)
            )
            assert (along < 0) == (scene.stated.relation in ("left of", "above"))
            assert abs(along) >= abs(across) + 8


def test_a_caption_states_at_most_three_factors_and_every_template_is_used(
    seen: list[Scene],
) -> None:
    for scene in seen:
        said = scene.stated
        counted = said.number is not None and said.number > 1
        besides = (counted, said.background, said.color, said.size, said.place, said.relation)
        assert sum(map(bool, besides)) <= 2, scene.caption
    captions = " | ".join(scene.caption for scene in seen)
    for words in ("on a blue background", "on blue", ", blue background", "a blue background with"):
        assert words in captions
    for words in ("an orange background", "an owl", "an apple", "a single", "one ", "some ", "2 "):
        assert words in captions
    for words in ("to the left of", "on the right of", " over ", " under ", "in the middle"):
        assert words in captions
    assert " a apple" not in captions
    assert " an blue" not in captions


def test_plurals_are_right() -> None:
    plural = {thing.one: thing.many for thing in objects()}
    assert plural["pot of food"] == "pots of food"
    assert plural["cactus"] == "cacti"
    assert plural["box"] == "boxes"
    assert plural["candy"] == "candies"
    captions = {
        number: show(Stated("cactus", number=number), dice(5)).caption.split()[-1]
        for number in NUMBERS
    }
    assert captions == {1: "cactus", 2: "cacti", 3: "cacti", 4: "cacti"}


def test_all_captions_fit_32_tokens(scenes_data: Dataset, seen: list[Scene]) -> None:
    every = list(dict.fromkeys(scenes_data.captions()))
    tokenizer = train_tokenizer(every[::4], 2000, lowercase=True)
    some = dict.fromkeys([*every[:: len(every) // 2000], *(s.caption for s in seen[:4000])])
    assert max(tokenizer.lengths(list(some), 64)) <= 32


# --- other words ----------------------------------------------------------------------------------


def test_a_tenth_of_the_other_words_is_never_trained(scenes_data: Dataset) -> None:
    words = {word for some in other_words().values() for word in some}
    never = {word for word in words if not is_trained(word)}
    assert len(words) > 2500
    assert 0.07 < len(never) / len(words) < 0.12
    plan = BatchPlan(len(scenes_data), 8, seed=1)
    stream = RowStream(1)
    drawn = [
        scenes_data.drawn(int(index), stream.at(PICTURES, row, step)).caption
        for step in range(400)
        for row, index in enumerate(plan.indices(step))
    ]
    captions = {*scenes_data.captions(), *drawn}
    assert not captions & never
    pairs = captions - {*open_dataset("twemoji", 8).captions()}
    parts = {part for caption in pairs for part in caption.split(", ")}
    assert parts & words
    assert not parts & never


def test_no_word_is_the_name_of_an_emoji() -> None:
    names = {name.lower() for name in open_dataset("twemoji", 8).captions()}
    assert not names & {word for some in other_words().values() for word in some}


# --- rows and streams -----------------------------------------------------------------------------


def test_two_rows_of_five_are_drawings_as_twemoji_has_them(scenes_data: Dataset) -> None:
    emoji = open_dataset("twemoji", CANVAS)
    rows = SceneRows(CANVAS)
    assert rows.scenes.start * 5 == pytest.approx(len(scenes_data) * 2, abs=5)
    names = emoji.captions()
    assert scenes_data.captions()[: len(names)] == names
    stream = RowStream(0)
    for index in (0, 700, 1917):
        drawn = scenes_data.drawn(index, stream.at(PICTURES, 0, index))
        assert drawn.caption == names[index]
        np.testing.assert_array_equal(drawn.image, emoji.item(index).image)
        np.testing.assert_array_equal(scenes_data.item(index).image, drawn.image)


def fields(batch: Batch) -> list[np.ndarray]:
    return [batch.images, np.array(batch.captions), batch.times, *batch.noise]


def test_a_resumed_run_and_a_rank_see_the_same_scenes(scenes_data: Dataset) -> None:
    plan = BatchPlan(len(scenes_data), 8, seed=1)
    with Loader(scenes_data, plan, DRAWS, workers=0, stop_step=4) as loader:
        through = list(loader)
    with Loader(scenes_data, plan, DRAWS, start_step=2, stop_step=4, workers=2) as loader:
        resumed = list(loader)
    rank = make_batch(scenes_data, plan.indices(3, [6, 1]), DRAWS, 3, [6, 1])
    for one, other in zip(resumed, through[2:], strict=True):
        for a, b in zip(fields(one), fields(other), strict=True):
            np.testing.assert_array_equal(a, b)
    for place, row in enumerate((6, 1)):
        np.testing.assert_array_equal(rank.images[place], through[3].images[row])
        assert rank.captions[place] == through[3].captions[row]


def test_an_index_shows_another_scene_in_another_step_row_and_seed(scenes_data: Dataset) -> None:
    index = SceneRows(CANVAS).scenes.start + 1
    batches = [
        make_batch(scenes_data, [index], replace(DRAWS, seed=seed), step, [row])
        for seed, step, row in ((7, 0, 0), (7, 1, 0), (7, 0, 1), (8, 0, 0))
    ]
    assert len({batch.images.tobytes() for batch in batches}) == 4


@dataclass
class Greedy:
    """A data set whose pictures take more or fewer of a row's numbers."""

    count: int

    def draw(self, index: int, random: np.random.Generator) -> Item:
        random.random(self.count)
        return Item(np.zeros((64, 64, 3), np.uint8), "dot", 1.0)


def test_what_a_picture_takes_from_its_stream_changes_no_other_draw() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)

    def data(draw: Greedy | None) -> Dataset:
        return Dataset(
            64, ["dot"], lambda _: (pixels.copy(), 1.0), "none", draw=draw.draw if draw else None
        )

    plain, some, more = (
        make_batch(data(draw), [0, 0], DRAWS, 5) for draw in (None, Greedy(3), Greedy(1001))
    )
    for other in (some, more):
        for a, b in zip(fields(plain), fields(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_scenes_of_a_seed_never_change() -> None:
    """If this fails, raise RULES in open_scenes.py, so that a run notices that it was begun with
    other scenes, and note the new hash."""
    stream, nouns = RowStream(1), [thing.one for thing in objects()]
    drawn = [draw_scene(nouns[k % 128], Dice(stream.at(PICTURES, k, 0))) for k in range(256)]
    drawn += [draw_related("cat", Dice(stream.at(PICTURES, k, 1))) for k in range(64)]
    text = "\n".join(map(str, drawn))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "174be7e5a13e8fee"


def test_a_small_picture_is_the_average_of_a_large_one_and_a_larger_one_is_sharper() -> None:
    scene = draw_scene("cat", dice(4))
    small, middle, large = (
        picture_of(scene, side, drawings()).astype(float) for side in (16, 64, 128)
    )
    averaged = middle.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - averaged).max() <= 1
    halved = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - middle).mean() < 6
    assert np.abs(np.diff(large, axis=1)).max() > 0


def test_captions_cannot_be_chosen_and_folders_keep_their_way(scenes_data: Dataset) -> None:
    with pytest.raises(DataError, match="drawn anew"):
        with_captions(scenes_data, ["red heart"])
    with pytest.raises(DataError, match="skip_bad"):
        open_dataset("scenes", 16, skip_bad=True)
    with pytest.raises(DataError, match="twemoji only"):
        open_dataset("scenes", 16, background="color")
    with pytest.raises(DataError, match="scenes"):
        open_dataset("./scenes-that-are-not-there", 16)
