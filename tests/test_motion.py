"""Clips of moving drawings: what their captions say, the same on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from mdm_apple.config.model import VideoConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import to_json
from mdm_apple.data.dataset import DataError
from mdm_apple.data.motion.draw_clip import FINER, draw_frame
from mdm_apple.data.motion.held_out import held_out
from mdm_apple.data.motion.objects import OBJECTS
from mdm_apple.data.motion.open_motion import Clip, MovingDrawings, open_motion, trained_clips
from mdm_apple.data.motion.poses import MOTIONS, Pose, Variant
from mdm_apple.data.open import open_dataset
from mdm_apple.data.twemoji import named_drawings, rendered
from mdm_apple.errors import ConfigError

pytestmark = pytest.mark.unit

FRAMES, SIDE = 16, 32
CANVAS = 4 * SIDE


def frames_of(canvas: np.ndarray) -> np.ndarray:
    """(16, side, side, 3) of a canvas."""
    tiles = canvas.reshape(4, SIDE, 4, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(FRAMES, SIDE, SIDE, 3).astype(int)


def ink(frames: np.ndarray) -> np.ndarray:
    """How far each pixel is from white, 0 to 255."""
    return 255 - frames.min(axis=-1)


def centers(frames: np.ndarray) -> np.ndarray:
    """Column and row of the middle of the ink, in each frame."""
    amount, at = ink(frames), np.arange(SIDE)
    total = amount.sum(axis=(1, 2))
    return np.stack([(amount.sum(axis=k) * at).sum(axis=1) / total for k in (1, 2)], axis=1)


@pytest.fixture(scope="module")
def drawings() -> MovingDrawings:
    return MovingDrawings(CANVAS, FRAMES)


def test_the_first_frame_is_top_left_and_the_last_bottom_right(drawings: MovingDrawings) -> None:
    canvas = drawings.canvas(Clip("rocket", "growing", 0))
    sizes = (ink(frames_of(canvas)) > 20).sum(axis=(1, 2))
    assert (np.diff(sizes) > 0).all()
    assert (ink(canvas[-SIDE:, -SIDE:].astype(int)) > 20).sum() == sizes[-1]


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving right", 0, 1), ("moving left", 0, -1), ("moving up", 1, -1), ("moving down", 1, 1)],
)
@pytest.mark.parametrize("thing", ["rocket", "snake", "top hat"])
def test_moves_go_where_the_caption_says(
    drawings: MovingDrawings, motion: str, axis: int, sign: int, thing: str
) -> None:
    path = centers(frames_of(drawings.canvas(Clip(thing, motion, 3))))
    step = np.diff(path, axis=0)
    assert (sign * step[:, axis] > 0.6).all()
    assert np.abs(step[:, 1 - axis]).max() < 0.2


def test_a_turn_is_clockwise(drawings: MovingDrawings) -> None:
    """A drawing that points up points right after a quarter of a turn."""
    paths = {drawing.name: drawing.path for drawing in named_drawings()}
    tree = rendered(paths["evergreen tree"], FINER * SIDE)
    turned = ink(draw_frame(tree, Pose(0, 0, 0.6, 90), SIDE).astype(int))
    upright = ink(draw_frame(tree, Pose(0, 0, 0.6, 0), SIDE).astype(int))
    assert np.abs(np.rot90(upright, -1) - turned).mean() < 3
    assert np.abs(np.rot90(upright, 1) - turned).mean() > 10


def test_spins_of_both_kinds_and_shrinking_are_the_other_run_backwards() -> None:
    sizes = {name: [MOTIONS[name](t, _still()).size for t in (0, 1)] for name in MOTIONS}
    assert sizes["growing"] == sizes["shrinking"][::-1]
    angle = {name: MOTIONS[name](0.5, _still()).angle for name in MOTIONS}
    assert angle["spinning clockwise"] == -angle["spinning counterclockwise"] > 0


def _still() -> Variant:
    return Variant(0.0, 0.0, 0.0)


def test_drawings_stay_in_their_frames(drawings: MovingDrawings) -> None:
    for thing in OBJECTS[::5]:
        for motion in MOTIONS:
            for variant in (0, 5):
                frames = frames_of(drawings.canvas(Clip(thing, motion, variant)))
                border = ink(frames).copy()
                border[:, 1:-1, 1:-1] = 0
                share = border.sum() / ink(frames).sum()
                assert share < 0.02, (thing, motion, variant)


def test_a_turn_shows_on_every_object() -> None:
    """No ball among them: turned by 30 degrees, each looks different."""
    paths = {drawing.name: drawing.path for drawing in named_drawings()}
    for name in OBJECTS:
        drawing = rendered(paths[name], FINER * SIDE)
        one, other = (
            draw_frame(drawing, Pose(0, 0, 0.6, angle), SIDE).astype(int) for angle in (0, 30)
        )
        seen = np.minimum(one, other).min(axis=-1) < 235
        assert np.abs(one - other).max(axis=-1)[seen].mean() > 25, name


def test_each_object_misses_one_motion_and_each_motion_is_missed_as_often() -> None:
    missed = held_out(OBJECTS, tuple(MOTIONS))
    assert len(missed) == len({thing for thing, _ in missed}) == len(OBJECTS)
    assert set(Counter(motion for _, motion in missed).values()) == {3, 4}
    trained = {(clip.thing, clip.motion) for clip in trained_clips(32, 8)}
    assert missed.isdisjoint(trained)
    assert len(trained) + len(missed) == 320


def test_the_variants_of_a_caption_differ(drawings: MovingDrawings) -> None:
    for motion in MOTIONS:
        seen = {drawings.canvas(Clip("cat", motion, k)).tobytes() for k in range(8)}
        assert len(seen) == 8, motion


def test_two_openings_give_the_same_clips_and_their_bytes_are_known() -> None:
    one, other = open_motion(CANVAS, FRAMES, 4, 2), open_motion(CANVAS, FRAMES, 4, 2)
    assert one.fingerprint == other.fingerprint != open_motion(CANVAS, FRAMES, 4, 3).fingerprint
    assert len(one) == 4 * 9 * 2
    digest = hashlib.sha256()
    for index in range(0, len(one), 7):
        assert (one.item(index).image == other.item(index).image).all()
        digest.update(one.item(index).image)
    assert digest.hexdigest() == "e34bbd624deaae9b3376cb61a4b5d25812def9c2647b0eec3bf0c4e6dc68ebc8"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: open_motion(64, 0), "needs a model of clips"),
        (lambda: open_motion(64, 8), "needs a model of clips"),
        (lambda: open_motion(66, 16), "needs a model of clips"),
        (lambda: open_motion(64, 16, 1), "expected 2 to 32 objects, got 1"),
        (lambda: open_motion(64, 16, 4, 0), "expected 1 to 1000 variants, got 0"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()


def test_a_model_of_clips_and_its_data_belong_together() -> None:
    clips = preset("tiny_video")
    data = open_dataset("motion:2:3", clips.side, frames=clips.frames)
    assert len(data) == 2 * 9 * 3
    with pytest.raises(DataError, match="a model of clips cannot learn from twemoji; give motion"):
        open_dataset("twemoji", clips.side, frames=clips.frames)
    first = open_dataset("motion:2:3", clips.side // 2)
    assert first.captions() == data.captions()
    canvas, side = data.item(5).image, first.side
    np.testing.assert_array_equal(first.item(5).image, canvas[:side, :side])
    for odd in ("motion:x", "motion:4:4:4", "motion:-1", "motion:"):
        with pytest.raises(DataError, match=r"expected motion\[:OBJECTS\[:VARIANTS\]\]"):
            open_dataset(odd, clips.side, frames=clips.frames)


def test_frames_are_those_that_the_levels_of_time_make() -> None:
    assert (preset("motion").frames, preset("tiny_video").frames) == (16, 4)
    with pytest.raises(ConfigError, match=r"video\.frames: expected 16, .* got 4\."):
        dataclasses.replace(preset("motion"), video=VideoConfig(4))
    assert '"video"' not in to_json(preset("tiny"))
