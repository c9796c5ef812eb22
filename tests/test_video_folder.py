"""A folder of the user's clips: captions, the cache of what is decoded, refusals, a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clip_files import animation, gray, movie, which
from PIL import Image

import mdm_apple as mdm
from mdm_apple.cli import group
from mdm_apple.config.presets import preset
from mdm_apple.data.batches import BatchPlan
from mdm_apple.data.clips import decoder
from mdm_apple.data.clips.cache import ClipCache
from mdm_apple.data.clips.decode import Decoded, Wanted
from mdm_apple.data.clips.open_clips import captions_of_clips
from mdm_apple.data.dataset import DataError, Dataset
from mdm_apple.data.open import open_dataset
from mdm_apple.diffusion.canvas import untiled
from mdm_apple.errors import MdmError, MissingPackageError
from mdm_apple.storage.files import FileError
from mdm_apple.training.settings import TrainConfig

pytestmark = pytest.mark.bundle  # files are decoded in another process

SIDE = 32  # of a canvas of 2 x 2 frames


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache is an empty folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mdm-apple" / "clips"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of ten frames, 8 a second: two of four frames, and a rest."""
    folder = tmp_path_factory.mktemp("made")
    movie(folder / "a.mov", gray(10), "qtrle", "rgb24")
    movie(folder / "b.mkv", gray(20)[10:], "ffv1", "bgr0")
    animation(folder / "c.gif", gray(20)[10:], 130)
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"gray {name}")
    return folder


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def opened(folder: Path, **more: Any) -> Dataset:
    return open_dataset(str(folder), SIDE, frames=4, **more)


def clips_of(dataset: Dataset) -> list[tuple[str, list[int]]]:
    """Caption and frames of each clip."""
    items = [dataset.item(index) for index in range(len(dataset))]
    return [
        (item.caption, [which(float(frame.mean())) for frame in untiled(item.image, 4)])
        for item in items
    ]


# --- what is read -----------------------------------------------------------------------------

ALL = [
    ("gray a", [0, 1, 2, 3]),
    ("gray a", [4, 5, 6, 7]),
    ("gray b", [10, 11, 12, 13]),
    ("gray b", [14, 15, 16, 17]),
    ("gray c", [10, 11, 11, 12]),
    ("gray c", [13, 14, 15, 16]),
]


def test_each_file_gives_its_clips_in_turn_with_its_caption(data: Path) -> None:
    dataset = opened(data)
    assert clips_of(dataset) == ALL
    assert [file.name for file in dataset.files] == ["a.mov"] * 2 + ["b.mkv"] * 2 + ["c.gif"] * 2
    item = dataset.item(0)
    assert (item.image.shape, item.image.dtype, item.scale) == ((32, 32, 3), np.uint8, 2 * 48)
    assert dataset.warnings == []


def test_no_more_clips_of_a_file_are_taken_than_are_asked_for(data: Path) -> None:
    assert clips_of(opened(data, clips_per_file=1)) == ALL[::2]


def test_the_pace_is_that_of_the_model(data: Path) -> None:
    assert clips_of(opened(data, fps=4))[0] == ("gray a", [0, 2, 4, 6])


def as_table(data: Path) -> None:
    rows = [{"video": f"{n}", "text": f"gray {n[0]}"} for n in ("a.mov", "b.mkv", "c.gif")]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_csv(data: Path) -> None:
    rows = "a.mov,gray a\nb.mkv,gray b\nc.gif,gray c\n"
    (data / "clips.csv").write_text(rows)


def as_classes(data: Path) -> None:
    for name in ("a.mov", "b.mkv", "c.gif"):
        (data / f"gray_{name[0]}").mkdir()
        (data / name).rename(data / f"gray_{name[0]}" / name)


@pytest.mark.parametrize("lay", [as_table, as_csv, as_classes])
def test_captions_lie_where_those_of_pictures_may_lie(
    data: Path, lay: Callable[[Path], None]
) -> None:
    for text in data.glob("*.txt"):
        text.unlink()
    lay(data)
    assert clips_of(opened(data)) == ALL
    assert captions_of_clips(data) == ["gray a", "gray b", "gray c"]


def test_a_folder_with_a_general_name_is_no_caption(data: Path) -> None:
    for text in data.glob("*.txt"):
        text.unlink()
    as_classes(data)
    (data / "gray_a").rename(data / "videos")
    with pytest.raises(DataError, match="unclear whether 'videos' is the caption of the clips"):
        opened(data)


# --- the cache --------------------------------------------------------------------------------


def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, no file can be decoded."""
    monkeypatch.setattr(decoder, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))


def test_a_file_is_decoded_once(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = opened(data)
    assert len(list(cache.iterdir())) == 3
    no_process(monkeypatch)
    again = opened(data)
    assert (clips_of(again), again.fingerprint) == (ALL, before.fingerprint)
    # neither does it matter where a file lies
    moved = shutil.copytree(data, tmp_path / "moved")
    (moved / "a.mov").rename(moved / "z.mov")
    (moved / "a.txt").rename(moved / "z.txt")
    assert sorted(clips_of(opened(moved))) == sorted(ALL)
    for other in ({"fps": 4}, {"clips_per_file": 1}):
        with pytest.raises(DataError, match="process that decodes clips ended with exit code 3"):
            opened(data, **other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        lambda data: b"",
        lambda data: b"{]\n" + data,
        lambda data: data.replace(b'"clips": 2', b'"clips": 1'),
        lambda data: data.replace(b'"clips": 2', b'"clips": 9e99'),
        lambda data: data.replace(b'"found": ', b'"found": 1'),
        lambda data: data.replace(b'"size": [', b'"size": [9'),
        lambda data: b"[" * 900 + b"\n",
    ],
)
def test_a_damaged_file_of_the_cache_is_made_again(
    data: Path, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    for path in data.glob("[ab].*"):
        path.unlink()
    before = opened(data).item(0).image.tobytes()
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    for path, content in whole.items():
        assert damage(content) != content
        path.write_bytes(damage(content))
    assert opened(data).item(0).image.tobytes() == before
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole


def test_a_cache_that_is_removed_while_it_is_used_is_one_sentence(data: Path, cache: Path) -> None:
    dataset = opened(data)
    shutil.rmtree(cache)
    with pytest.raises(FileError, match="decoded clips cannot be read; no such file"):
        dataset.item(0)


def test_a_kept_clip_is_read_alone(cache: Path) -> None:
    """However many there are: a run of many files holds none of them open."""
    kept = ClipCache(Wanted(2, 4, 8.0, 3))
    pixels = np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)
    written = kept.keep("0" * 64, Decoded(pixels, (7, 5), 13))
    found = kept.find("0" * 64)
    assert found == written
    assert found is not None
    assert (found.clips, found.size, found.found) == (3, (7, 5), 13)
    assert [found.canvas(k).tolist() for k in range(3)] == pixels.tolist()
    assert kept.find("1" * 64) is None
    assert ClipCache(Wanted(2, 4, 9.0, 3)).find("0" * 64) is None


def test_what_differs_shows_in_the_fingerprint(data: Path) -> None:
    found = {opened(data).fingerprint, opened(data, fps=4).fingerprint}
    found.add(opened(data, clips_per_file=1).fingerprint)
    (data / "a.txt").write_text("another caption")
    found.add(opened(data).fingerprint)
    shutil.copy(data / "b.mkv", data / "a.mov")  # another file under its name
    found.add(opened(data).fingerprint)
    assert len(found) == 5


# --- what is refused --------------------------------------------------------------------------


def test_a_file_that_is_too_short_is_named_and_not_used(data: Path) -> None:
    movie(data / "d.mov", gray(3), "qtrle", "rgb24")
    (data / "d.txt").write_text("short")
    dataset = opened(data)
    assert clips_of(dataset) == ALL
    assert dataset.warnings == [
        "clips: 1 file is shorter than 4 frames at 8 a second (d.mov), and not used."
    ]
    with pytest.raises(DataError, match=r"4 files are shorter than 4 .*\(a.mov, .*\); give longer"):
        opened(data, fps=1)


def test_a_bad_file_is_refused_or_left_out(data: Path) -> None:
    (data / "b.mkv").write_bytes((data / "b.mkv").read_bytes()[:200])
    (data / "c.gif").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.mkv: it cannot .*; 1 more cannot be used, and `mdm"):
        opened(data)
    dataset = opened(data, skip_bad=True)
    assert clips_of(dataset) == ALL[:2]
    assert sorted(dataset.left_out) == ["b.mkv", "c.gif"]


def test_pictures_are_refused_by_a_model_of_clips(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        folder = tmp_path / suffix
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / f"0.{suffix}")
        (folder / "0.txt").write_text("black")
        with pytest.raises(DataError, match=rf"holds pictures \(0\.{suffix}\) and no clips, and"):
            opened(folder)


def test_clips_are_refused_by_a_model_of_pictures(data: Path) -> None:
    with pytest.raises(DataError, match=r"holds clips \(a\.mov\) and no pictures, .* motion\.$"):
        open_dataset(str(data), 8)


def test_a_still_among_clips_is_bad(data: Path) -> None:
    Image.new("RGB", (8, 8)).save(data / "0.png")
    (data / "0.txt").write_text("black")
    with pytest.raises(DataError, match=r"0\.png: a still picture, not a clip; remove it\."):
        opened(data)


def test_a_name_that_leads_out_of_the_folder_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "a.mov", tmp_path / "out.mov")
    (data / "d.mov").symlink_to(tmp_path / "out.mov")
    (data / "d.txt").write_text("elsewhere")
    with pytest.raises(DataError, match="leads out of the folder; copy the clip into"):
        opened(data)


@pytest.mark.parametrize("other", ["motion:2:1", "twemoji"])
def test_an_option_of_clips_is_refused_for_others(other: str) -> None:
    frames = 4 if other.startswith("motion") else 1
    with pytest.raises(DataError, match="clips_per_file: applies to a folder of clips"):
        open_dataset(other, SIDE, frames=frames, clips_per_file=2)


def test_movies_need_the_extra_and_animations_do_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "av" else find(name)
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(
        group,
        ["train", "--preset", "tiny_video", "--data", str(data), "--steps", "1", "--out", str(out)],
    )
    assert isinstance(done.exception, MissingPackageError)
    assert str(done.exception) == "av is not installed. Run: pip install 'mdm-apple[video]'"
    assert not out.exists()
    for name in ("a.mov", "b.mkv"):
        (data / name).unlink()
    assert clips_of(opened(data)) == ALL[4:]


# --- the check --------------------------------------------------------------------------------


def test_a_check_names_what_it_finds(data: Path) -> None:
    shutil.copy(data / "a.mov", data / "same.mov")
    (data / "same.txt").write_text("the same")
    movie(data / "d.mov", gray(3), "qtrle", "rgb24")
    (data / "d.txt").write_text("short")
    movie(data / "wide.mov", gray(8, (160, 16)), "qtrle", "rgb24")
    (data / "wide.txt").write_text("wide")
    (data / "bad.mp4").write_text("ffconcat version 1.0\nfile a.mov\n")
    (data / "bad.txt").write_text("a list")
    movie(data / "bare.mov", gray(8), "qtrle", "rgb24")
    (data / "lone.txt").write_text("nothing to see")
    done = CliRunner().invoke(group, ["data", "check", str(data), "--size", "24", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert "none of the 7 files can be used; repair them." in str(done.exception)
    # without a model, clips are those of the preset `motion`: 16 frames
    assert found["too_short"]["a.mov"] == 10
    assert len(found["too_short"]) == 6
    done = CliRunner().invoke(
        group, ["data", "check", str(data), "--preset", "tiny_video", "--json"]
    )
    found = json.loads(done.stdout)
    assert "1 of 7 files is bad; repair or remove them" in str(done.exception)
    assert found["too_short"] == {"d.mov": 3}
    assert list(found["bad"]) == ["bad.mp4"]
    assert found["duplicates"] == [["a.mov", "same.mov"]]
    assert found["cropped"] == {"wide.mov": pytest.approx(0.9)}
    assert found["without_caption"] == ["bare.mov"]
    assert found["captions_without_picture"] == ["lone.txt"]
    assert (found["pictures"], found["used"], found["side"]) == (7, 10, 8)


def test_a_check_of_good_clips_says_so_and_draws_them(data: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = CliRunner().invoke(
        group, ["data", "check", str(data), "--preset", "tiny_video", "--out", str(sheet)]
    )
    assert done.exit_code == 0, done.output
    assert "training sees 6 clips from 3 of 3 captioned files at 8 px" in done.output
    assert sheet.exists()


def test_a_check_of_clips_alone_says_what_training_says(data: Path) -> None:
    for path in data.glob("[bc].*"):
        path.unlink()
    (data / "a.mov").write_bytes(b"")
    found = mdm.check_data(data, preset="tiny_video")
    assert found.refusal() == "the only file cannot be used; repair it."
    movie(data / "a.mov", gray(3), "qtrle", "rgb24")
    found = mdm.check_data(data, preset="tiny_video")
    assert found.refusal() == "no file is long enough for a clip; give longer ones."
    with pytest.raises(MdmError, match="clips_per_file: applies to a folder of clips"):
        mdm.check_data(data, preset="tiny", clips_per_file=3)


# --- a run ------------------------------------------------------------------------------------

SETTINGS = TrainConfig(
    steps=2, batch_size=3, warmup_steps=1, save_every=1000, log_every=1000, sample_every=0
)


def test_a_run_learns_from_clips_and_goes_on_only_with_the_same_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    out, more = tmp_path / "run", TrainConfig(**{**vars(SETTINGS), "steps": 3})
    config = preset("tiny_video")

    def train(settings: TrainConfig, **given: Any) -> None:
        start = {"config": config} if not given.get("resume") else {}
        mdm.train(data, out, settings=settings, backend="torch", **start, **given)

    train(SETTINGS, clips_per_file=1)
    no_process(monkeypatch)  # a resumed run decodes nothing
    with pytest.raises(MdmError, match="clips-per-file: the run in"):
        train(more, resume=True, clips_per_file=2)
    train(more, resume=True)
    (data / "a.mov").write_bytes((data / "c.gif").read_bytes())
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MdmError, match=r"was trained on other pictures .*a\.mov is another"):
        train(TrainConfig(**{**vars(SETTINGS), "steps": 4}), resume=True)


def test_a_file_that_no_row_of_clips_has_seen_may_change(
    data: Path, pictures: Path, tmp_path: Path
) -> None:
    """Half of a batch are pictures: one step of four rows has seen two of the six clips."""
    pytest.importorskip("torch")
    last = {4, 5}  # the clips of c.gif
    seed = next(
        seed
        for seed in range(100)
        if not last & BatchPlan(6, 2, seed).seen(1) and last & BatchPlan(6, 4, seed).seen(1)
    )
    tiny, out = preset("tiny_video"), tmp_path / "run"
    diffusion = dataclasses.replace(tiny.diffusion, mixed_ratio=(1.0, 1.0))
    config = dataclasses.replace(tiny, diffusion=diffusion, mixed_training=True)
    told = TrainConfig(steps=1, batch_size=4, sample_every=0, seed=seed)
    more: dict[str, Any] = {"pictures": str(pictures), "backend": "torch", "quiet": True}
    mdm.train(str(data), out, settings=told, config=config, **more)
    with (data / "c.gif").open("ab") as file:
        file.write(bytes(8))  # behind the end of the clip
    more |= {"resume": True, "settings": dataclasses.replace(told, steps=2)}
    mdm.train(str(data), out, **more)
    with (data / "c.gif").open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(MdmError, match="is another picture"):  # the second step has seen it
        mdm.train(str(data), out, **more | {"settings": dataclasses.replace(told, steps=3)})
