"""Pictures beside clips: which rows they are, that no level of time sees them, and a run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BACKENDS, Backend
from small import random_state

import mdm_apple as mdm
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import preset
from mdm_apple.data.batches import Batch, BatchPlan, Draws, Loader, make_batch
from mdm_apple.data.dataset import Dataset
from mdm_apple.data.stills import MixedPlan, clip_rows, with_stills
from mdm_apple.diffusion.canvas import tiled, untiled
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.training.parts import rows_of
from mdm_apple.training.settings import TrainConfig

CLIPS, PICTURES = 7, 5
BATCH = 9


def mixed(ratio: tuple[float, ...] = (2.0, 1.0)) -> ModelConfig:
    """4 frames of 8 px around a picture; a third of each batch is for pictures alone."""
    tiny = preset("tiny_video")
    diffusion = dataclasses.replace(tiny.diffusion, mixed_ratio=ratio)
    return dataclasses.replace(tiny, diffusion=diffusion, mixed_training=True)


def noise(side: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 255, (side, side, 3)).astype(np.uint8)


def clips() -> Dataset:
    captions = [f"clip {k}" for k in range(CLIPS)]
    return Dataset(16, captions, lambda k: (noise(16, k), 16.0), "clips")


def some_pictures() -> Dataset:
    captions = [f"picture {k}" for k in range(PICTURES)]
    return Dataset(8, captions, lambda k: (noise(8, 100 + k), 20.0), "pictures")


def plan() -> MixedPlan:
    rows = clip_rows(mixed(), BATCH)
    return MixedPlan(BatchPlan(CLIPS, rows, 3), BatchPlan(PICTURES, BATCH - rows, 3), CLIPS)


def batch(step: int, rows: np.ndarray | None = None) -> Batch:
    both = with_stills(clips(), some_pictures(), 4)
    chosen = np.arange(BATCH) if rows is None else rows
    indices = plan().indices(step, chosen)
    config = mixed()
    return make_batch(both, indices, Draws(3, config.sides, config.diffusion), step, chosen)


def test_the_last_rows_are_pictures_and_all_are_seen_equally_often() -> None:
    assert clip_rows(mixed(), BATCH) == 6
    every = np.stack([plan().indices(step) for step in range(35)])
    assert every[:, :6].max() < CLIPS <= every[:, 6:].min()
    assert np.bincount(every[:, :6].ravel()).tolist() == [30] * CLIPS
    assert np.bincount(every[:, 6:].ravel() - CLIPS).tolist() == [21] * PICTURES


def test_a_picture_is_a_clip_that_stands_still() -> None:
    both = with_stills(clips(), some_pictures(), 4)
    assert len(both) == CLIPS + PICTURES
    assert both.captions() == [*clips().captions(), *some_pictures().captions()]
    still, clip = both.item(CLIPS + 2), both.item(2)
    assert (untiled(still.image, 4) == some_pictures().item(2).image).all()
    assert (still.caption, still.scale) == ("picture 2", 40.0)
    assert (clip.image == clips().item(2).image).all()
    assert (clip.caption, clip.scale) == ("clip 2", 16.0)


@pytest.mark.parametrize(("world", "accumulate"), [(3, 1), (1, 3)])
def test_processes_and_parts_see_the_rows_of_the_whole(world: int, accumulate: int) -> None:
    train = TrainConfig(steps=1, batch_size=BATCH, accumulate=accumulate)
    whole, parts = batch(5), [rows_of(train, rank, world) for rank in range(world)]
    for rows in parts:
        mine = batch(5, rows)
        assert (mine.images == whole.images[rows]).all()
        assert mine.captions == [whole.captions[row] for row in rows]
        for part in np.split(np.arange(len(rows)), accumulate):
            stills = [mine.captions[row].startswith("picture") for row in part]
            assert stills == [False, False, True]  # of each part, the last third


def test_a_run_that_goes_on_sees_what_one_without_a_stop_sees() -> None:
    config, both = mixed(), with_stills(clips(), some_pictures(), 4)
    draws = Draws(3, config.sides, config.diffusion)
    with Loader(both, plan(), draws, start_step=0, stop_step=4, workers=2) as loader:
        every = list(loader)
    with Loader(both, plan(), draws, start_step=2, stop_step=4, workers=0) as loader:
        later = list(loader)
    for one, other in zip(every[2:], later, strict=True):
        assert (one.images == other.images).all()
        assert one.captions == other.captions


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (preset("tiny"), 9, "needs levels of clips"),
        (preset("tiny_video"), 9, "a mixed_ratio"),
        (mixed((0.0, 1.0)), 9, "has 0 rows for clips"),
        (mixed((1.0, 0.0)), 9, "has 9 rows for clips"),
    ],
)
def test_a_model_without_a_place_for_pictures_refuses_them(
    config: ModelConfig, size: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        clip_rows(config, size)


# --- the loss ---------------------------------------------------------------------------------


def loss_of(backend: Backend, seen: Batch) -> float:
    config = mixed()
    text = config.text
    assert text is not None

    def encode() -> tuple[np.ndarray, np.ndarray]:
        width = config.model.innermost.text_dim or 0
        values = np.random.RandomState(1).randn(BATCH, text.max_tokens, width)
        return values.astype(np.float32), np.ones((BATCH, text.max_tokens), np.float32)

    train = TrainConfig(steps=1, batch_size=BATCH, ema_decay=None)
    learner = backend.learner(config, train, random_state(config.model), encode)
    return learner.step(seen, 0).loss


def with_frame(seen: Batch, row: int, frame: int) -> Batch:
    """The batch with noise in the place of a frame of a row."""
    frames = untiled(seen.images[row].transpose(1, 2, 0), 4)  # type: ignore[arg-type]
    frames[frame] = np.random.RandomState(9).uniform(-1, 1, frames[frame].shape)
    images = seen.images.copy()
    images[row] = tiled(frames).transpose(2, 0, 1)
    return dataclasses.replace(seen, images=images)


@pytest.mark.parametrize("name", list(BACKENDS))
def test_of_a_picture_only_the_first_frame_is_learned(name: str) -> None:
    pytest.importorskip("mlx.core" if name == "mlx" else name)
    backend, seen = BACKENDS[name](), batch(0)
    loss, picture, clip = loss_of(backend, seen), BATCH - 1, 0
    assert loss_of(backend, with_frame(seen, picture, 3)) == loss
    assert loss_of(backend, with_frame(seen, picture, 0)) != loss
    assert loss_of(backend, with_frame(seen, clip, 3)) != loss


def test_both_backends_lose_the_same() -> None:
    pytest.importorskip("mlx.core")
    pytest.importorskip("torch")
    one, other = (loss_of(BACKENDS[name](), batch(0)) for name in ("torch", "mlx"))
    assert one == pytest.approx(other, rel=1e-5)
    moved = loss_of(BACKENDS["mlx"](), with_frame(batch(0), BATCH - 1, 0))
    assert one != pytest.approx(moved, rel=1e-5)


# --- a run ------------------------------------------------------------------------------------


def test_a_run_notes_its_pictures_and_goes_on_with_them(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    beside, out = Path(shutil.copytree(pictures, tmp_path / "beside")), tmp_path / "run"
    settings = TrainConfig(steps=1, batch_size=3, save_every=100, log_every=100, sample_every=0)

    def train(steps: int, **more: Any) -> None:
        told = dataclasses.replace(settings, steps=steps)
        mdm.train("motion:2:1", out, settings=told, backend="torch", **more)

    train(1, config=mixed(), pictures=str(beside))
    train(2, resume=True)
    with pytest.raises(MdmError, match="pictures: the run in"):
        train(3, resume=True, pictures="scenes")
    next(iter(sorted(beside.glob("*.txt")))).write_text("another caption")
    with pytest.raises(MdmError, match="was trained beside other pictures than --pictures"):
        train(3, resume=True)


def spoiled(path: Path) -> None:
    """The picture without its second half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_bad_pictures_beside_clips_are_left_out_and_named(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    beside, out = Path(shutil.copytree(pictures, tmp_path / "beside")), tmp_path / "run"
    bad = sorted(beside.glob("*.png"))[3]
    spoiled(bad)
    said: list[str] = []
    settings = TrainConfig(steps=6, batch_size=12, sample_every=0)

    def train(steps: int, **more: Any) -> None:
        told = dataclasses.replace(settings, steps=steps)
        mdm.train("motion:2:1", out, settings=told, backend="torch", say=said.append, **more)

    with pytest.raises(MdmError, match="--skip-bad, and") as refused:  # some step meets it
        train(6, config=mixed(), pictures=str(beside), overwrite=True)
    assert f"`mdm data check {beside}`" in str(refused.value)
    shutil.rmtree(out, ignore_errors=True)
    train(1, config=mixed(), pictures=str(beside), skip_bad=True)
    (remark,) = [one for one in said if "left out" in one]
    assert f"pictures: 1 of {len(list(beside.glob('*.png')))} is bad" in remark
    assert bad.name in remark
    train(2, resume=True)  # the option is noted
    spoiled(sorted(beside.glob("*.png"))[4])
    with pytest.raises(MdmError, match="was trained beside other pictures than --pictures"):
        train(3, resume=True)
    with pytest.raises(MdmError, match="applies to a folder of pictures"):
        mdm.train("motion:2:1", tmp_path / "b", settings=settings, config=mixed(), skip_bad=True)
