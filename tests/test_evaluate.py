"""Scores of pictures: against a model that knows every answer, and against chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from small import normal, plain, trainable_model, video

from mdm_apple.cli.motion_report import motion_text, motion_values
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Images
from mdm_apple.data.dataset import Dataset
from mdm_apple.data.motion.objects import OBJECTS
from mdm_apple.data.motion.open_motion import Clip, MovingDrawings
from mdm_apple.diffusion import arithmetic
from mdm_apple.diffusion.canvas import tiled, untiled
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.diffusion.schedule import build_schedule
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.evaluation.evaluate import (
    EvaluationPlan,
    Scores,
    Teacher,
    evaluate,
    mean_scores,
    measure,
    worst_scores,
)
from mdm_apple.evaluation.evaluate_motion import MotionPlan, evaluate_motion
from mdm_apple.evaluation.evaluate_scenes import check_scene_model
from mdm_apple.evaluation.motion_captions import every_pair
from mdm_apple.evaluation.retrieval import drawn_captions, pool, retrieval_ranks, retrieval_side
from mdm_apple.sampling.generate import Prompt
from mdm_apple.sampling.inner_model import inner_model
from mdm_apple.sampling.walk import Denoise, SamplerConfig

QUICK = SamplerConfig("ddim", 3)
CLIP_OBJECTS = 4


def pictures_of(config: ModelConfig, count: int, seed: int = 0) -> Dataset:
    """Pictures of large patches, half of each white, called "0", "1" and so on."""
    random = np.random.RandomState(seed)
    side = config.side
    drawn = random.randint(0, 200, (count, 4, 4, 3), dtype=np.uint8)
    drawn[:, :2] = 255
    images = drawn.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    captions = [str(i) for i in range(count)]
    return Dataset(side, captions, lambda i: (images[i], float(side)), "fingerprint")


class Oracle:
    """A runtime whose network always sees the real picture behind the noise, less `error`."""

    def __init__(self, config: ModelConfig, dataset: Dataset, error: float = 0.0) -> None:
        self.config, self.ops = config, NumpyOps()
        self.schedule = build_schedule(config.diffusion.schedule, config.model.scales)
        self._dataset, self._error = dataset, error

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        names = self._dataset.captions()
        items = [self._dataset.item(names.index(p.text)).image for p in prompts]
        full = np.stack(items).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        real = [pool(full, side) for side in self.config.sides][first_level:]
        scales = self.config.model.scales
        tables = build_schedule(self.config.diffusion.schedule, scales).tables[first_level:]

        def denoise(x_t: list[Any], time: int) -> list[Any]:
            return [
                arithmetic.v_from_x0(x, x0 - self._error, float(table[time + 1]))
                for x, x0, table in zip(x_t, real, tables, strict=True)
            ]

        return denoise

    def image(self, x: Images) -> Any:
        return x

    def numpy(self, x: Any) -> Images:
        return x


@pytest.fixture
def config() -> ModelConfig:
    """16 inside 32 px."""
    return dataclasses.replace(trainable_model(), side=32)


# --- the whole -----------------------------------------------------------------------------------


def test_a_model_that_knows_every_picture_scores_full_marks(config: ModelConfig) -> None:
    dataset = pictures_of(config, 40)
    seen: list[int] = []
    plan = EvaluationPlan(QUICK, count=24, seeds=(3, 4), batch_size=10)
    found = evaluate(Oracle(config, dataset), dataset, plan, seen.append)
    assert seen == [10, 10, 4] * 2
    assert (found.side, found.compared_at, found.gallery) == (32, 32, 40)
    assert list(found.scores) == [3, 4]
    for scores in found.scores.values():
        assert (scores.top1, scores.top5, scores.white_share) == (1, 1, 1)
        assert scores.gradient_ratio == pytest.approx(1, abs=1e-4)
        assert scores.text_only_mse == pytest.approx((0, 0), abs=1e-9)
        assert scores.consistency == pytest.approx((0,), abs=1e-5)
        assert scores.layout_frechet == pytest.approx(0, abs=1e-5)
        assert (scores.layout_precision, scores.layout_recall) == (1, 1)
    captions = [dataset.captions()[i] for i in drawn_captions(40, 24, 3)]
    assert [pair.caption for pair in found.shown] == captions
    for pair in found.shown:
        np.testing.assert_allclose(pair.made, pair.real, atol=1e-4)


def test_a_darker_model_is_still_retrieved_but_no_longer_clean(config: ModelConfig) -> None:
    dataset = pictures_of(config, 40)
    oracle = Oracle(config, dataset, error=0.1)
    (scores,) = evaluate(oracle, dataset, EvaluationPlan(QUICK, count=24)).scores.values()
    assert scores.top1 == 1
    assert scores.white_share == 0
    assert scores.text_only_mse == pytest.approx((0.01, 0.01), rel=0.1)  # clipped at black
    assert scores.layout_frechet > 0.1


def test_a_student_is_measured_against_its_teachers_pictures_of_the_same_noise(
    config: ModelConfig,
) -> None:
    dataset = pictures_of(config, 20)
    plan = EvaluationPlan(QUICK, count=8)
    off, exact = Oracle(config, dataset, error=-0.1), Oracle(config, dataset)
    found = evaluate(off, dataset, plan, teacher=Teacher(exact, QUICK)).scores[0]
    (alone,) = evaluate(off, dataset, plan).scores.values()
    assert alone.teacher_distance == ()
    half_white = 0.1 / 2**0.5  # white stays white: clipped
    assert found.teacher_distance == pytest.approx((half_white, half_white), rel=0.01)


def test_an_inner_level_is_compared_at_its_own_side(config: ModelConfig) -> None:
    dataset = pictures_of(config, 20)
    plan = EvaluationPlan(QUICK, count=8, stop_at=16)
    found = evaluate(Oracle(config, dataset), dataset, plan)
    assert (found.side, found.compared_at) == (16, 16)
    assert found.shown[0].real.shape == found.shown[0].made.shape == (3, 16, 16)
    assert found.scores[0].top1 == 1
    assert (len(found.scores[0].text_only_mse), found.scores[0].consistency) == (1, ())


def test_an_untrained_model_is_retrieved_by_chance(
    backend: Backend, config: ModelConfig, model_folder: Path
) -> None:
    runtime = backend.runtime(model_folder)
    dataset = pictures_of(runtime.config, 200)
    plan = EvaluationPlan(QUICK, count=120, batch_size=60)
    (scores,) = evaluate(runtime, dataset, plan).scores.values()
    assert scores.top5 <= 0.1  # 2.5 % on average; 12 of 120 happen once in 10^5 draws
    assert scores.consistency[0] > 0.05


def test_the_same_plan_gives_the_same_scores_whatever_the_batch(
    backend: Backend, model_folder: Path
) -> None:
    runtime = backend.runtime(model_folder)
    dataset = pictures_of(runtime.config, 12)
    found = [
        evaluate(runtime, dataset, EvaluationPlan(QUICK, count=12, batch_size=size)).scores[0]
        for size in (12, 5)
    ]
    one, other = (
        np.hstack([np.ravel(v) for v in dataclasses.asdict(f).values()]).astype(float)
        for f in found
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# --- parts ---------------------------------------------------------------------------------------


def test_ranks_count_other_captions_that_are_nearer() -> None:
    gallery = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones(
        (1, 3, 2, 2), np.float32
    )
    made = gallery[[2, 2]] + np.float32(0.1)
    ranks = retrieval_ranks(made, gallery, ["c", "f"], ["a", "b", "c", "d", "e", "f"])
    # from 2.1: 2 at 0.1, 3 at 0.9, 1 at 1.1, 4 at 1.9, 0 at 2.1, 5 at 2.9
    assert ranks.tolist() == [0, 5]


def test_any_picture_of_the_caption_counts_and_a_twin_under_another_name_is_no_nearer() -> None:
    gallery = normal(0, 5, 3, 4, 4)
    gallery[3] = gallery[0]
    captions = ["a", "b", "a", "twin", "c"]
    for row, asked in ((0, "a"), (2, "a"), (3, "twin"), (0, "twin"), (1, "b")):
        assert retrieval_ranks(gallery[[row]], gallery, [asked], captions).tolist() == [0]
    assert retrieval_ranks(gallery[[1]], gallery, ["a"], captions).tolist() != [0]


def test_white_is_counted_within_six_of_255() -> None:
    real = np.ones((1, 3, 8, 8), np.float32)
    real[0, 0, :4] = 0.9  # not white: one channel is enough
    made = np.full((1, 3, 8, 8), 1 - 6 / 127.5, np.float32)
    made[0, 1, 4] = 1 - 7 / 127.5  # one row of the four white ones
    measured = measure([real], [made], [made], np.zeros(1, np.int64))
    assert measured.white.tolist() == [[32, 24]]


def test_captions_are_drawn_by_seed_without_repetition() -> None:
    drawn = drawn_captions(100, 60, 7)
    assert len(set(drawn.tolist())) == 60
    np.testing.assert_array_equal(drawn, drawn_captions(100, 60, 7))
    assert not np.array_equal(drawn, drawn_captions(100, 60, 8))


@pytest.mark.parametrize(("side", "wanted"), [(64, 32), (1024, 32), (32, 32), (16, 16), (48, 48)])
def test_pictures_are_compared_at_32_px_or_their_own(side: int, wanted: int) -> None:
    assert retrieval_side(side) == wanted


def test_mean_and_worst_go_each_their_own_way() -> None:
    one = Scores(0.1, 0.9, 0.5, 0.8, (0.1, 0.4), (0.1,), 1.0, 0.1, 0.9, 0.2)
    other = Scores(0.3, 0.7, 0.6, 1.1, (0.3, 0.2), (0.2,), 2.0, 0.3, 0.7, 0.4)
    mean, worst = mean_scores([one, other]), worst_scores([one, other])
    assert mean["top5"] == pytest.approx(0.8)
    assert mean["text_only_mse"] == pytest.approx([0.2, 0.3])
    assert worst == {
        "top1": 0.1,
        "top5": 0.7,
        "white_share": 0.5,
        "gradient_ratio": 0.8,
        "text_only_mse": [0.3, 0.4],
        "consistency": [0.2],
        "layout_frechet": 2.0,
        "layout_kernel": 0.3,
        "layout_precision": 0.7,
        "layout_recall": 0.2,
        "teacher_distance": [],
    }
    assert mean_scores([dataclasses.replace(one, white_share=None)])["white_share"] is None


# --- refusals ------------------------------------------------------------------------------------


def test_impossible_plans_are_refused(config: ModelConfig) -> None:
    for changes, said in (
        ({"count": 3}, "count"),
        ({"seeds": ()}, "eval-seed"),
        ({"seeds": (1, 1)}, "eval-seed"),
        ({"seeds": (2**16,)}, "eval-seed"),
    ):
        with pytest.raises(MdmError, match=said):
            EvaluationPlan(QUICK, **changes)  # type: ignore[arg-type]
    dataset = pictures_of(config, 8)
    with pytest.raises(MdmError, match="at most 8"):
        evaluate(Oracle(config, dataset), dataset, EvaluationPlan(QUICK, count=9))
    with pytest.raises(ConfigError, match="stop-at"):
        evaluate(Oracle(config, dataset), dataset, EvaluationPlan(QUICK, count=4, stop_at=5))


def test_a_model_of_videos_is_refused() -> None:
    model = ModelConfig(video(plain(text_dim=None)), side=32)
    dataset = pictures_of(model, 8)
    with pytest.raises(MdmError, match="makes clips"):
        evaluate(Oracle(model, dataset), dataset, EvaluationPlan(QUICK, count=4))


# --- clips ---------------------------------------------------------------------------------------


class ClipOracle(Oracle):
    """A runtime that sees the real clip behind the noise, or that clip with its frames reversed.

    another: or the clip of the next object.
    """

    def __init__(self, reverse: bool, another: bool = False) -> None:
        self._next = int(another)
        super().__init__(preset("motion"), pictures_of(trainable_model(), 1))
        self._drawings, self._reverse = MovingDrawings(self.config.side, 16), reverse

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        asked = {pair.caption: pair for pair in every_pair(CLIP_OBJECTS)}
        things = [OBJECTS.index(asked[p.text].thing) + self._next for p in prompts]
        clips = [
            Clip(OBJECTS[thing % CLIP_OBJECTS], asked[p.text].motion, 1000)
            for thing, p in zip(things, prompts, strict=True)
        ]
        frames = [untiled(self._drawings.canvas(clip), 16) for clip in clips]
        canvases = np.stack([tiled(some[::-1] if self._reverse else some) for some in frames])
        full = canvases.transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        real = build_pyramid(full, self.config.model, self.ops)[first_level:]
        tables = self.schedule.tables[first_level:]

        def denoise(x_t: list[Any], time: int) -> list[Any]:
            return [
                arithmetic.v_from_x0(x, x0, float(table[time + 1]))
                for x, x0, table in zip(x_t, real, tables, strict=True)
            ]

        return denoise


def test_clips_that_move_as_asked_score_full_marks_and_reversed_ones_do_not() -> None:
    plan = MotionPlan(QUICK, count=16, seeds=(1, 2), batch_size=10, objects=CLIP_OBJECTS)
    seen: list[int] = []
    found = evaluate_motion(ClipOracle(reverse=False), plan, seen.append)
    assert seen == [10, 10, 10, 2]
    assert {row: some["motion"].count for row, some in found.rows.items()}["held out"] == 8
    for some in found.rows.values():
        assert (some["motion"].share, some["pair"].share) == (1, 1)
    assert found.consistency == pytest.approx((0, 0), abs=1e-5)
    assert found.steadiness.change == pytest.approx(1, abs=0.1)
    assert "held out, 8 clips" in motion_text(found)
    assert motion_values(found)["rows"]["trained"]["motion"]["share"] == 1
    reversed_ones = evaluate_motion(ClipOracle(reverse=True), plan)
    assert reversed_ones.rows["trained"]["motion"].share <= 0.5


def test_smaller_clips_are_judged_at_their_size_and_key_frames_by_their_object() -> None:
    """The frame reversed is the last in place of the first, and shows the object as well."""
    level = MotionPlan(QUICK, count=16, seeds=(1,), objects=CLIP_OBJECTS, stop_at=64)
    found = evaluate_motion(ClipOracle(reverse=False), level)
    assert {some["motion"].share for some in found.rows.values()} == {1}
    assert len(found.consistency) == 1
    assert evaluate_motion(ClipOracle(reverse=True), level).rows["trained"]["motion"].share <= 0.5
    key = dataclasses.replace(level, stop_at=16)
    found = evaluate_motion(ClipOracle(reverse=False), key)
    assert {name for some in found.rows.values() for name in some} == {"object"}
    assert {some["object"].share for some in found.rows.values()} == {1}
    assert found.rows["trained"]["object"].chance == 1 / CLIP_OBJECTS
    assert (found.steadiness.change, found.steadiness.flicker) == (None, None)
    assert found.steadiness.white_share >= 0.98
    assert (found.consistency, motion_values(found)["change"]) == ((), None)
    lines = motion_text(found)
    assert "show the object" in lines
    assert "flicker" not in lines
    others = evaluate_motion(ClipOracle(reverse=False, another=True), key)
    assert others.rows["trained"]["object"].share == 0


def test_clips_are_no_scenes() -> None:
    with pytest.raises(MdmError, match="scenes are pictures, and the model makes clips"):
        check_scene_model(inner_model(preset("motion"), 64))
