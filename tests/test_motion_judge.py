"""The judge of clips is right about real clips, and about clips that are wrong in a known way."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from mdm_apple.config.presets import preset
from mdm_apple.config.types import Images
from mdm_apple.data.motion.held_out import held_out
from mdm_apple.data.motion.objects import OBJECTS
from mdm_apple.data.motion.open_motion import Clip, MovingDrawings
from mdm_apple.data.motion.poses import MOTIONS
from mdm_apple.errors import MdmError
from mdm_apple.evaluation.evaluate_motion import MotionPlan, check_motion_model
from mdm_apple.evaluation.motion_captions import AskedClip, asked_clips, every_pair
from mdm_apple.evaluation.motion_judge import MotionJudge
from mdm_apple.evaluation.retrieval import as_images
from mdm_apple.sampling.walk import SamplerConfig

pytestmark = pytest.mark.unit

FRAMES, SIDE, OBJECT_COUNT = 16, 16, 4
OTHER = 1000  # a variant that is in no gallery
CANVAS = 4 * SIDE


@pytest.fixture(scope="module")
def judge() -> MotionJudge:
    return MotionJudge(CANVAS, FRAMES, OBJECT_COUNT)


@pytest.fixture(scope="module")
def asked() -> list[AskedClip]:
    return asked_clips(1000, OBJECT_COUNT)


@pytest.fixture(scope="module")
def clips(asked: list[AskedClip]) -> Images:
    """Clips of a variant that the judge does not compare with."""
    drawings = MovingDrawings(CANVAS, FRAMES)
    drawn = [drawings.canvas(Clip(one.thing, one.motion, OTHER)) for one in asked]
    return as_images(np.stack(drawn))


def reordered(clips: Images, order: list[int]) -> Images:
    """The clips with their frames in another order."""
    n = 4
    cells = clips.reshape(len(clips), 3, n, SIDE, n, SIDE).transpose(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(len(clips), FRAMES, 3, SIDE, SIDE)[:, order]
    cells = cells.reshape(len(clips), n, n, 3, SIDE, SIDE).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(cells.reshape(clips.shape))


def share(judge: MotionJudge, clips: Images, asked: list[AskedClip], name: str) -> float:
    return float(judge.hits(clips, asked)[name].mean())


def test_real_clips_are_right_with_noise_too(
    judge: MotionJudge, clips: Images, asked: list[AskedClip]
) -> None:
    assert share(judge, clips, asked, "motion") >= 0.97
    assert share(judge, clips, asked, "pair") >= 0.95
    assert share(judge, clips, asked, "track") >= 0.9
    noise = np.random.RandomState(0).normal(0, 0.3, clips.shape).astype(np.float32)
    assert share(judge, clips + noise, asked, "motion") >= 0.97


def test_time_decides(judge: MotionJudge, clips: Images, asked: list[AskedClip]) -> None:
    backwards = reordered(clips, list(range(FRAMES))[::-1])
    one_way = np.array([one.motion not in ("bouncing", "swinging") for one in asked])
    hits: NDArray[np.bool_] = judge.hits(backwards, asked)["motion"]
    assert hits[one_way].mean() <= 0.03, "backwards, each is another motion"
    still = reordered(clips, [FRAMES // 2] * FRAMES)
    assert share(judge, still, asked, "motion") <= 0.35
    shuffled = reordered(clips, np.random.RandomState(3).permutation(FRAMES).tolist())
    assert share(judge, shuffled, asked, "motion") <= 0.6


def test_another_object_is_no_pair(
    judge: MotionJudge, clips: Images, asked: list[AskedClip]
) -> None:
    others = [
        AskedClip(OBJECTS[(OBJECTS.index(one.thing) + 1) % OBJECT_COUNT], one.motion, False)
        for one in asked
    ]
    known = every_pair(OBJECT_COUNT)
    others = [next(p for p in known if p.caption == one.caption) for one in others]
    assert share(judge, clips, others, "pair") <= 0.05


def test_steadiness_of_real_clips_is_one_and_of_spoiled_ones_is_not(
    judge: MotionJudge, clips: Images, asked: list[AskedClip]
) -> None:
    real = judge.steadiness(clips, asked)
    assert real.change == pytest.approx(1, abs=0.05)
    assert real.flicker == pytest.approx(1, abs=0.05)
    assert real.white_share >= 0.99
    noise = np.random.RandomState(0).normal(0, 0.1, clips.shape).astype(np.float32)
    noisy = judge.steadiness(clips + noise, asked)
    assert noisy.flicker > 1.5
    assert noisy.change > 1.2
    assert judge.steadiness(clips - 0.2, asked).white_share <= 0.01
    still = judge.steadiness(reordered(clips, [0] * FRAMES), asked)
    assert (still.change, still.flicker) == (0, 0)


def test_clips_are_compared_with_the_variants_of_training(
    judge: MotionJudge, clips: Images, asked: list[AskedClip]
) -> None:
    """A pixel may be white in the one variant that was trained, and not in the others."""
    few = MotionJudge(CANVAS, FRAMES, OBJECT_COUNT, variants=1).steadiness(clips, asked)
    assert few.white_share < judge.steadiness(clips, asked).white_share
    with pytest.raises(MdmError, match="expected 1 to 1000 variants"):
        MotionPlan(SamplerConfig(), variants=0)


def test_the_distance_sees_a_still_and_not_a_reversal(judge: MotionJudge, clips: Images) -> None:
    real = judge.frechet(clips)
    assert judge.frechet(reordered(clips, list(range(FRAMES))[::-1])) < 1.3 * real
    assert judge.frechet(reordered(clips, [FRAMES // 2] * FRAMES)) > 1.5 * real


def test_a_quarter_of_the_captions_is_held_out_and_motions_take_turns() -> None:
    asked = asked_clips(128)
    missed = held_out(OBJECTS, tuple(MOTIONS))
    assert len({one.caption for one in asked}) == 128
    assert [(one.thing, one.motion) in missed for one in asked] == [one.held_out for one in asked]
    assert sum(one.held_out for one in asked) == 32
    trained = Counter(one.motion for one in asked if not one.held_out)
    assert set(trained.values()) <= {9, 10}
    assert len(trained) == len(MOTIONS)
    assert {one.caption for one in asked_clips(1000)} == {one.caption for one in every_pair(32)}


def test_the_list_of_captions_stays() -> None:
    names = "|".join(one.caption for one in asked_clips(128))
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "babf6682707092bd"


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(MdmError, match="this one makes pictures"):
        check_motion_model(preset("emoji"))
    check_motion_model(preset("motion"))
    with pytest.raises(
        MdmError, match="expected an object with a motion, as in cat growing, got red heart"
    ):
        MotionPlan(SamplerConfig(), captions=("red heart",))
