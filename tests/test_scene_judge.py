"""The judge of scenes is right about pictures that are known, and about pictures that are wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scene_captions import every_caption
from benchmarks.scene_judge import noisy, rendered, some_scenes
from mdm_apple.config.types import Images
from mdm_apple.data.open import open_dataset
from mdm_apple.data.scenes.dice import Dice
from mdm_apple.data.scenes.draw_scene import show
from mdm_apple.data.scenes.factors import CANVAS, OPPOSITE, Scene, Stated
from mdm_apple.data.scenes.held_out import is_held_out
from mdm_apple.data.scenes.objects import objects
from mdm_apple.data.scenes.words import is_trained
from mdm_apple.errors import MdmError
from mdm_apple.evaluation import scene_scores
from mdm_apple.evaluation.scene_judge import judge
from mdm_apple.evaluation.scene_scores import (
    CAPTIONS,
    HEADER,
    Asked,
    asked_of,
    right_drawings,
    scene_shares,
    word_shares,
)
from mdm_apple.evaluation.share import Share

pytestmark = pytest.mark.unit

FILE = Path(scene_scores.__file__).with_name(CAPTIONS)
SIDES = ("seen", "held out")
COUNT = 400
NOISE = 0.1  # standard deviation, in units of [-1, 1]


def dice(seed: int) -> Dice:
    return Dice(np.random.Generator(np.random.Philox(key=[seed, 2])))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return some_scenes(COUNT)


def shares(pictures: Images, stated: list[Stated]) -> dict[str, Share]:
    return scene_shares(pictures, [Asked("", "", (), said) for said in stated])


def test_each_factor_is_right_on_fresh_pictures_and_with_noise(scenes: list[Scene]) -> None:
    pictures, stated = rendered(scenes), [scene.stated for scene in scenes]
    clean, spoiled = shares(pictures, stated), shares(noisy(pictures, NOISE), stated)
    factors = {"all", "thing", "number", "background", "color", "size", "place", "relation"}
    assert set(clean) == factors
    for name in factors:
        assert clean[name].count >= 30
        assert clean[name].share >= 0.97, name
        assert spoiled[name].share >= 0.95, name


def test_shuffled_captions_score_what_chance_gives(scenes: list[Scene]) -> None:
    stated = [scene.stated for scene in scenes]
    order = np.random.RandomState(1).permutation(COUNT)
    mixed = shares(rendered(scenes), [stated[k] for k in order])
    assert mixed["all"].share <= 0.02
    assert mixed["thing"].share <= 0.03, "1 of 128, and of pairs less"
    assert mixed["relation"].share <= 0.02
    assert 0.05 < mixed["background"].share < 0.25, "1 of 8"
    assert mixed["color"].share <= 0.3, "1 of 6, less where shapes have no colour"
    assert mixed["place"].share <= 0.35, "1 of 5 of those that are alone"
    assert mixed["number"].share <= 0.5
    fair = shares(rendered(scenes), stated)
    assert fair["all"].chance <= 0.02
    assert 0.05 < fair["background"].chance < 0.25


@pytest.mark.parametrize(
    ("factor", "stated", "wrong"),
    [
        ("thing", Stated("heart", number=2), {"thing": "star"}),
        ("number", Stated("cat", number=3), {"number": 2}),
        ("background", Stated("owl", number=1, background="blue"), {"background": "purple"}),
        ("color", Stated("heart", number=1, color="green"), {"color": "yellow"}),
        ("size", Stated("dog", number=1, size="small"), {"size": "large"}),
        ("place", Stated("key", number=1, place="top left"), {"place": "top right"}),
    ],
)
def test_a_picture_with_one_wrong_factor_misses_that_one(
    factor: str, stated: Stated, wrong: dict[str, str | int]
) -> None:
    right = rendered([show(stated, dice(k)) for k in range(8)])
    other = rendered([show(replace(stated, **wrong), dice(k)) for k in range(8)])  # type: ignore[arg-type]
    assert all(all(found.values()) for found in judge(right, [stated] * 8))
    for found in judge(other, [stated] * 8):
        assert not found.pop(factor)
        assert all(found.values())


def test_a_relation_is_missed_from_the_wrong_side_and_without_the_other() -> None:
    stated = Stated("cat", number=1, relation="left of", other="owl")
    related = [thing.one for thing in objects() if thing.related]
    one, other, third = related[:3]
    for relation in OPPOSITE:
        stated = Stated(one, number=1, relation=relation, other=other)
        picture = rendered([show(stated, dice(1))])
        assert judge(picture, [stated]) == [{"thing": True, "relation": True}]
        turned = replace(stated, relation=OPPOSITE[relation])
        assert judge(picture, [turned]) == [{"thing": True, "relation": False}]
        absent = replace(stated, other=third)
        assert judge(picture, [absent]) == [{"thing": False, "relation": False}]


def test_an_empty_or_noisy_picture_has_nothing() -> None:
    stated = Stated("heart", number=1, color="red", size="small", place="center")
    empty = np.ones((1, 3, 64, 64), np.float32)
    noise = np.random.RandomState(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    assert not any(judge(empty, [stated])[0].values())
    assert not judge(noise, [stated])[0]["thing"]


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(MdmError, match="64 px"):
        judge(np.zeros((1, 3, 32, 32), np.float32), [Stated("heart")])
    with pytest.raises(MdmError, match="one per picture"):
        judge(np.zeros((1, 3, 64, 64), np.float32), [])


# --- test captions ------------------------------------------------------------------------------


def test_the_file_of_captions_is_what_its_script_makes() -> None:
    asked = every_caption()
    assert FILE.read_text(encoding="utf-8").splitlines() == [HEADER, *(one.line for one in asked)]
    assert [one for some in asked_of().values() for one in some] == asked


def test_each_row_has_its_captions_and_none_twice() -> None:
    counts = {row: len(some) for row, some in asked_of().items()}
    never = counts.pop("never trained")
    assert never > 200
    assert counts == {
        "names": 512,
        "words": 512,
        "phrasings": 200,
        **{f"{row}, {side}": 256 for row in ("together", "color", "relation") for side in SIDES},
        **{f"place, {side}": 128 for side in SIDES},
    }
    for some in asked_of().values():
        assert len({one.line for one in some}) == len(some)


def test_rows_of_scenes_are_held_out_or_seen_as_they_say() -> None:
    for row, some in asked_of().items():
        if some[0].stated is None:
            continue
        for place, one in enumerate(some[:64]):
            assert one.stated is not None
            scene = show(one.stated, dice(place))
            held_out = is_held_out(scene.background, scene.placed, scene.place, one.stated.relation)
            assert held_out == row.endswith("held out"), one


def test_rows_of_words_are_trained_or_never_trained_as_they_say() -> None:
    trained = {*open_dataset("scenes", 8).captions()}
    rows = asked_of()
    assert all(one.caption in trained for one in rows["names"])
    assert all(is_trained(one.caption) for one in rows["words"])
    assert sum(one.caption in trained for one in rows["words"]) == 512
    assert not any(one.caption in trained for one in rows["never trained"])
    for one in rows["phrasings"]:
        assert one.caption not in trained
        assert all(word in trained for word in one.words)
    kinds = Counter(len(one.words) for one in rows["phrasings"])
    assert kinds == {1: 100, 2: 100}


def test_every_word_of_the_test_has_a_drawing_and_drawings_find_themselves() -> None:
    emoji = open_dataset("twemoji", CANVAS)
    names = emoji.captions()
    asked = [*asked_of()["names"][:40], *asked_of()["words"][:20]]
    right = right_drawings(asked)
    assert right.any(axis=1).all()
    first = right.argmax(axis=1)
    assert [names[k] for k in first[:40]] == [one.caption for one in asked[:40]]
    pixels = np.stack([emoji.item(int(k)).image for k in first])
    pictures = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    found = word_shares(pictures, asked, emoji)
    assert found["top5"].share == 1
    assert found["top5"].chance < 0.2
    assert word_shares(pictures[::-1], asked, emoji)["top5"].share < 0.2


def test_wilsons_interval_is_that_of_the_literature() -> None:
    """Newcombe 1998, table I: 81 of 263 and 15 of 148, by the score method."""
    assert Share(81, 263, 0).interval == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Share(15, 148, 0).interval == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert Share(0, 20, 0).interval == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert Share(20, 20, 0).interval[1] == 1
