"""Clips as files, `mdm sample` for models of clips, and clips that begin or end with a picture."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import MlxBackend, TorchBackend
from click.testing import CliRunner, Result
from clip_files import all_frames, movie
from PIL import Image
from small import save_random_model

import mdm_apple as mdm
from mdm_apple.cli import group
from mdm_apple.cli.picture_files import PictureFiles
from mdm_apple.clip_file.embedded_text import MAX_TEXT, embedded_text
from mdm_apple.clip_file.read import MAX_FRAMES, read_clip
from mdm_apple.clip_file.timing import durations, repeats
from mdm_apple.clip_file.write import CLIPS, LOSSLESS, clip_bytes
from mdm_apple.config.model import Distilled, ModelConfig
from mdm_apple.config.network import Student, UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import as_values
from mdm_apple.config.types import Pixels
from mdm_apple.data.batches import Draws, make_batch
from mdm_apple.data.dataset import Dataset
from mdm_apple.diffusion.canvas import tiled, untiled
from mdm_apple.diffusion.ops import NumpyOps
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.errors import ConfigError, MdmError, MissingPackageError
from mdm_apple.given_pictures.frames import frame_of_clip, given_frames
from mdm_apple.model import Model
from mdm_apple.sampling.filters import FilteredError
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.given_frames import GivenFrames, given_at_levels
from mdm_apple.sampling.inner_model import AskedLevel, inner_model, side_of_level
from mdm_apple.sampling.pictures import read_recipe, to_pixels
from mdm_apple.sampling.walk import SamplerConfig

FPS = 8.0
LOSSY = [suffix for suffix in CLIPS if suffix not in LOSSLESS]
FAST = ["--steps", "3", "--backend", "torch", "--quiet"]
TEXT = json.dumps({"prompt": 'a <b> & "c" ]]> ❤️ é', "x": "é" * 300}, ensure_ascii=False)


def noise(count: int, side: int = 8, seed: int = 0) -> Pixels:
    return np.random.RandomState(seed).randint(0, 256, (count, side, side, 3), dtype=np.uint8)


def far(a: Pixels, b: Pixels) -> int:
    """The largest difference of two equally large pictures or clips, in steps of a byte."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def written(path: Path, frames: Pixels, fps: float = FPS, text: str | None = None) -> Path:
    path.write_bytes(clip_bytes(frames, fps, path.suffix, text))
    return path


# --- files ------------------------------------------------------------------------------------

STILL = np.repeat(noise(1), 16, axis=0)
PAUSES = np.repeat(noise(3), [5, 3, 8], axis=0)
WHITE = np.full((4, 8, 8, 3), 255, np.uint8)


@pytest.mark.parametrize(
    "frames", [noise(4), STILL, PAUSES, WHITE], ids=["moves", "stands", "pauses", "white"]
)
@pytest.mark.parametrize("suffix", CLIPS)
def test_every_frame_comes_back_although_a_file_merges_equal_ones(
    suffix: str, frames: Pixels, tmp_path: Path
) -> None:
    for fps in (0.1, 8.0, 23.976, 50.0):
        again = all_frames(written(tmp_path / f"a{suffix}", frames, fps), fps)
        assert len(again) == len(frames)
        if suffix not in (".mp4", ".mov"):  # these frames have at most 256 colours
            np.testing.assert_array_equal(again, frames)


def test_a_file_that_merges_frames_would_lose_them_without_their_times(tmp_path: Path) -> None:
    """The twin: Pillow finds three frames in a GIF of sixteen, and read at another pace, others."""
    gif = written(tmp_path / "a.gif", PAUSES)
    with Image.open(gif) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert len(read_clip(gif, FPS / 2)) != len(PAUSES)


@pytest.mark.parametrize("suffix", CLIPS)
def test_a_file_carries_its_text(suffix: str, tmp_path: Path) -> None:
    assert embedded_text(written(tmp_path / f"a{suffix}", noise(4), text=TEXT)) == TEXT
    assert embedded_text(written(tmp_path / f"b{suffix}", noise(4))) is None
    long = "é" * (MAX_TEXT // 2)
    assert embedded_text(written(tmp_path / f"c{suffix}", noise(4), text=long)) == long
    assert embedded_text(written(tmp_path / f"d{suffix}", noise(4), text="x" * 70_000)) is None


def test_other_programs_see_a_clip_at_its_pace(tmp_path: Path) -> None:
    with Image.open(written(tmp_path / "a.png", noise(4), 12.5)) as image:
        assert (image.format, image.n_frames, image.info["duration"]) == ("PNG", 4, 80.0)  # type: ignore[attr-defined]
        image.seek(3)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), noise(4)[3])
    with Image.open(written(tmp_path / "a.webp", noise(4))) as image:
        image.seek(3)
        image.load()
        assert image.info["duration"] == 125


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_movie_is_what_players_take_and_near_to_its_frames(suffix: str, tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    frames = noise(4, side=9)  # odd, so 29 times its side would be odd too
    path = written(tmp_path / f"a{suffix}", frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        coder = stream.codec_context
        assert (coder.name, coder.pix_fmt, coder.width, coder.height) == (
            "h264",
            "yuv420p",
            270,
            270,
        )
        assert stream.average_rate == Fraction(8)
    middles = all_frames(path, FPS)[:, 15::30, 15::30]
    assert far(middles, frames) <= 8
    assert far(middles, frames[::-1]) > 100  # the twin
    assert path.read_bytes() == clip_bytes(frames, FPS, suffix)  # the same again


def test_no_frame_drifts_from_its_time() -> None:
    for fps in (0.1, 8.0, 24.0, 29.97, 50.0):
        ends = np.cumsum(durations(100, fps, 100))
        assert np.abs(ends / 100 - np.arange(1, 101) / fps).max() < 0.0051
    assert durations(4, 8.0, 100) == [12, 13, 13, 12]
    assert [repeats(s, 8.0) for s in (0.0, 0.12, 0.25, 2.0)] == [1, 1, 2, 16]


def test_a_movie_without_pyav_names_the_extra(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "av" else find(name)
    )
    with pytest.raises(MissingPackageError, match=r"pip install 'mdm-apple\[video\]'"):
        clip_bytes(noise(4), FPS, ".mp4")
    assert clip_bytes(noise(4), FPS, ".webp")
    monkeypatch.chdir(tmp_path)
    message = refusal("--model", clips, "cat", "--out", "a.mov")
    assert message == "av is not installed. Run: pip install 'mdm-apple[video]'"
    assert list(tmp_path.iterdir()) == []


# --- files from outside -----------------------------------------------------------------------


def with_recipe(path: Path, text: str) -> Path:
    return written(path, noise(4), text=text)


def changed(recipe: dict[str, Any], **changes: Any) -> str:
    return json.dumps(recipe | changes)


@pytest.mark.bundle  # another process decodes the file
@pytest.mark.parametrize("suffix", CLIPS)
def test_a_damaged_recipe_gets_one_sentence(suffix: str, clips: Path, tmp_path: Path) -> None:
    (file,) = made("--model", clips, "cat", "--seed", "1", "--out", tmp_path / f"a{suffix}")
    recipe = json.loads(embedded_text(file) or "")
    for text, said in (
        ("{", "not valid JSON"),
        (changed(recipe, fps=0), "fps: expected 0.1 to 240.0"),
        (changed(recipe).replace("8.0", "NaN"), "NaN is not a number"),
        (changed(recipe, frames="4"), "expected a whole number"),
        (changed(recipe, frame=4), "Did you mean 'frames'?"),
        (changed(recipe, frames=9), "is a clip of 9 frames"),
        (changed(recipe, frames=10**9), "is a clip of 1000000000 frames"),
        (changed(recipe, stop_at=12), "stop-at: this model has sides 16, 8 of canvases"),
        (changed(recipe, first_frame="0" * 64), "give it again with --first-frame"),
        ("x" * 70_000, "carries no recipe"),
    ):
        bad = with_recipe(tmp_path / f"bad{suffix}", text)
        message = refusal("--model", clips, "--like", bad, "--out", tmp_path / "again.png")
        assert said in message, text[:60]
        assert message.count("\n") == 0
    assert not (tmp_path / "again.png").exists()


def hostile(folder: Path) -> dict[str, Path]:
    """Files that are not what their names say, or too large, or cut."""
    out: dict[str, bytes] = {
        "empty.webp": b"",
        "text.gif": b"GIF89a but not really",
        "list.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "box.mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(400),
        "cut.mp4": clip_bytes(noise(4), FPS, ".mp4")[:900],
        "cut.png": clip_bytes(noise(4), FPS, ".png")[:300],
        "cut.gif": clip_bytes(noise(4), FPS, ".gif")[:40],
        "huge.gif": b"GIF89a" + b"\xff\xff" * 2 + bytes(20),
    }
    for name, data in out.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in out}


@pytest.mark.bundle  # another process decodes the file
def test_a_hostile_clip_gets_one_sentence(tmp_path: Path) -> None:
    for name, path in hostile(tmp_path).items():
        for read in (lambda p: frame_of_clip(p, last=True), lambda p: read_clip(p, FPS)):
            with pytest.raises(MdmError) as refused:
                read(path)
            assert name in str(refused.value)
            assert "\n" not in str(refused.value)


def test_a_clip_that_stands_for_hours_is_refused_before_it_is_unfolded(tmp_path: Path) -> None:
    """Two frames, each shown for a minute, are 28,800 frames at 240 a second."""
    path = tmp_path / "long.gif"
    first, second = map(Image.fromarray, noise(2))
    first.save(path, save_all=True, append_images=[second], duration=60_000)
    with pytest.raises(MdmError, match=f"up to {MAX_FRAMES} frames"):
        read_clip(path, 240)
    assert len(read_clip(path, 1)) == 120
    with pytest.raises(ConfigError, match="fps: expected"):
        read_clip(path, float("nan"))


# --- mdm sample -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset tiny_video with random weights: 4 frames of 8 px."""
    return save_random_model(tmp_path_factory.mktemp("models") / "clips", preset("tiny_video"))


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["sample", *FAST, *map(str, arguments)])


def made(*arguments: str | Path) -> list[Path]:
    result = command("--json", *arguments)
    assert result.exit_code == 0, result.exception or result.output
    return [Path(name) for name in json.loads(result.stdout)["files"]]


def refusal(*arguments: str | Path) -> str:
    result = command(*arguments)
    assert isinstance(result.exception, MdmError), result.exception or result.output
    return str(result.exception)


@pytest.mark.parametrize("suffix", CLIPS)
def test_like_makes_the_same_clip_again(suffix: str, clips: Path, tmp_path: Path) -> None:
    """From png and webp to the bit; gif and movies hold what the same frames become there."""
    asked = ["--model", clips, "red heart moving up", "--fps", "12", "--guidance", "2"]
    (first,) = made(*asked, "--seed", "7", "--out", tmp_path / f"first{suffix}")
    (again,) = made("--model", clips, "--like", first, "--out", tmp_path / f"again{suffix}")
    (other,) = made(*asked, "--seed", "8", "--out", tmp_path / f"other{suffix}")
    (exact,) = made("--model", clips, "--like", first, "--out", tmp_path / "exact.png")
    recipe = read_recipe(first)
    assert (recipe.frames, recipe.fps, recipe.seed) == (4, 12.0, 7)
    assert read_recipe(again) == read_recipe(exact) == recipe
    np.testing.assert_array_equal(all_frames(again, 12), all_frames(first, 12))
    assert far(all_frames(other, 12), all_frames(first, 12)) > 20  # the twin
    if suffix in LOSSLESS:
        np.testing.assert_array_equal(read_clip(exact, 12), read_clip(first, 12))


def test_a_clip_without_out_is_an_animated_png(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = made("--model", clips, "red heart", "--seed", "3")
    assert path.name == "red-heart_3.png"
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (4, (8, 8))  # type: ignore[attr-defined]
    assert (read_recipe(path).frames, read_recipe(path).fps) == (4, 8.0)


def test_a_recipe_of_a_picture_says_nothing_of_clips(model_folder: Path, tmp_path: Path) -> None:
    (picture,) = made("--model", model_folder, "cat", "--out", tmp_path / "a.png")
    assert sorted(as_values(read_recipe(picture)))[:5] == [
        *("backend", "eta", "grid", "guidance", "model"),
    ]
    assert not {"frames", "fps", "first_frame"} & set(json.loads(embedded_text(picture) or ""))


@pytest.mark.bundle  # another process decodes the file
def test_several_clips_go_into_a_folder_that_an_interrupted_command_fills(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    asked = ["--model", clips, "cat", "dog", "--seed", "1", "--sheet"]
    files = made(*asked, tmp_path / "sheet.png", "--out", whole)
    assert [f.name for f in files] == ["0000_cat_1.png", "0001_dog_1.png", "grid.png", "sheet.png"]
    finish_files = PictureFiles.finish

    def interrupted(files: PictureFiles) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(PictureFiles, "finish", interrupted)
    assert command(*asked, tmp_path / "again.png", "--out", out).exit_code == 1
    monkeypatch.setattr(PictureFiles, "finish", finish_files)
    (out / "0001_dog_1.png").unlink()
    made(*asked, tmp_path / "again.png", "--out", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    grid = read_clip(out / "grid.png", FPS)
    np.testing.assert_array_equal(grid[:, :, -8:], read_clip(out / "0001_dog_1.png", FPS))


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_sheet_shows_the_frames_as_they_were_made(
    suffix: str, clips: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "deeper" / "s.png"
    asked = ["--model", clips, "cat", "--seed", "1", "--out", tmp_path / f"a{suffix}"]
    assert made(*asked, "--sheet", sheet)[1] == sheet
    (exact,) = made("--model", clips, "cat", "--seed", "1", "--out", tmp_path / "exact.png")
    (shown,) = read_clip(sheet, FPS)
    assert shown.shape == (64, 4 * 66 - 2, 3)
    for k, frame in enumerate(read_clip(exact, FPS)):
        np.testing.assert_array_equal(shown[::8, 66 * k : 66 * k + 64 : 8], frame)


def test_previews_have_steps_as_rows_and_frames_as_columns(clips: Path, tmp_path: Path) -> None:
    asked = ["--model", clips, "cat", "--previews", "--preview-every", "2"]
    clip, strip = made(*asked, "--out", tmp_path / "a.webp")
    (shown,) = read_clip(strip, FPS)
    rows, block = 3, 3 * 66 - 2  # steps 0 and 2 and the result, of each level
    assert shown.shape == (2 * block + 6, 4 * 66 - 2, 3)
    result = shown[66 * (rows - 1) : block]
    for k, frame in enumerate(read_clip(clip, FPS)):
        np.testing.assert_array_equal(result[::8, 66 * k : 66 * k + 64 : 8], frame)
    assert shown[block + 6 :, 66:].min() == 255  # the key frame is one


def test_a_level_of_clips_has_frames_and_a_side(clips: Path, tmp_path: Path) -> None:
    (whole,) = made("--model", clips, "cat", "--seed", "1", "--out", tmp_path / "a.png")
    asked = ["--model", clips, "cat", "--seed", "1", "--stop-at"]
    (same,) = made(*asked, "4x8", "--out", tmp_path / "b.png")
    np.testing.assert_array_equal(read_clip(same, FPS), read_clip(whole, FPS))
    (key,) = made(*asked, "1x8", "--out", tmp_path / "c.png")
    assert read_clip(key, FPS).shape == (1, 8, 8, 3)
    assert (read_recipe(key).frames, read_recipe(key).stop_at) == (None, 8)
    (again,) = made("--model", clips, "--like", key, "--out", tmp_path / "d.png")
    assert again.read_bytes() == key.read_bytes()


@pytest.mark.bundle  # another process decodes the file
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--stop-at 8", "give 4x8 or 1x8 (frames x side); got 8."),
        ("--stop-at 8x4", "give 4x8 or 1x8 (frames x side); got 8x4."),
        ("--frames 16", "this model makes clips of 4 frames, got 16; leave out --frames."),
        ("--stop-at 1x8 --fps 4", "fps: belongs to clips, but 1x8 is a picture; leave it out."),
        ("--stop-at 1x8 --first-frame p.png", "first-frame: belongs to clips, but 1x8 is a pic"),
        ("--stop-at 1x8 --out a.webp", "pictures are written as .png, got a.webp."),
        ("--fps 60 --out a.gif", "a GIF shows at most 50 frames a second, got 60; choose .webp."),
        ("--out a.jpg", "clips are written as .png, .webp, .gif, .mp4 or .mov, got a.jpg."),
        ("--out a.webm", "clips are written as .png, .webp, .gif, .mp4 or .mov, got a.webm."),
        ("--seed 1 --seed 2 --out a.gif", "2 clips need a folder, got the file a.gif."),
        ("--sheet s.gif", "a contact sheet is written as .png, got s.gif."),
        (
            "--sheet a.png --out a.png",
            "a.png is another file of this command; choose another name.",
        ),
        ("--sheet p.png", "p.png exists; choose another --sheet or add --overwrite."),
        ("--first-frame none.png", "none.png: no such file."),
        ("--first-frame t.txt", "t.txt: cannot be read as a PNG, JPEG, WebP or BMP picture"),
        ("--last-frame t.gif", "t.gif: it cannot be decoded"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    arguments: str, said: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise(1)[0]).save("p.png")
    Path("t.txt").write_text("text")
    Path("t.gif").write_bytes(b"GIF89a")
    before = sorted(tmp_path.iterdir())
    assert said in refusal("--model", clips, "cat", *arguments.split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--fps 8", "fps: belongs to clips, but this model makes pictures; leave it out."),
        ("--frames 4", "frames: belongs to clips, but this model makes pictures"),
        ("--sheet s.png", "sheet: belongs to clips, but this model makes pictures"),
        ("--first-frame none.png", "first-frame: belongs to clips, but this model makes pictures"),
        ("--last-frame none.png", "last-frame: belongs to clips, but this model makes pictures"),
        ("--stop-at 4x8", "this model makes pictures, so give a side alone: 16, 8; got 4x8."),
        ("--out a.mp4", "pictures are written as .png, got a.mp4."),
    ],
)
def test_a_model_of_pictures_refuses_what_belongs_to_clips(
    arguments: str, said: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal("--model", model_folder, "cat", *arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_like_a_clip_of_another_model(clips: Path, model_folder: Path, tmp_path: Path) -> None:
    (first,) = made("--model", clips, "cat", "--out", tmp_path / "a.webp")
    message = refusal("--model", model_folder, "--like", first, "--out", tmp_path / "b.png")
    assert "a.webp is a clip of 4 frames, and" in message
    assert "makes pictures; name the model of the clip with --model." in message
    message = refusal("--like", first, "--out", tmp_path / "b.png")  # no model named
    assert "box:emoji makes pictures; name the model of the clip" in message
    weights = save_random_model(tmp_path / "other", preset("tiny_video"), encoder_seed=5)
    asked = ["sample", "--model", weights, "--like", first, "--out", tmp_path / "c.png"]
    result = CliRunner().invoke(group, [str(a) for a in asked])
    assert result.exit_code == 0


def test_lossy_files_say_so(clips: Path, tmp_path: Path) -> None:
    for suffix, said in ((".gif", "256 colours"), (".mp4", "not exactly"), (".webp", None)):
        asked = [
            "sample",
            "--model",
            clips,
            "cat",
            "--steps",
            "1",
            "--out",
            tmp_path / f"a{suffix}",
        ]
        stderr = CliRunner().invoke(group, [str(a) for a in asked]).stderr
        assert ("out: a" in stderr) == (said is not None)
        assert said is None or said in stderr


# --- from a picture to a clip -------------------------------------------------------------------

SAMPLERS = [
    SamplerConfig("ddim", 3, eta=0.5, guidance_scale=2.0),
    SamplerConfig("ddpm", 3),
    SamplerConfig("dpmpp", 4),
    SamplerConfig("ddim", 3, threshold="dynamic"),
]
CAT = Prompt("cat", 1)


def student_of_clips() -> ModelConfig:
    """tiny_video with the inputs of a student that jumps in one step or two."""

    def taught(level: UNetConfig) -> UNetConfig:
        inner = None if level.inner is None else taught(level.inner)
        return dataclasses.replace(level, student=Student(), inner=inner)

    config = preset("tiny_video")
    learned = Distilled((1000, 500), (1.0, 3.0))
    return dataclasses.replace(config, model=taught(config.model), distilled=learned)


def frames_made(
    runtime: Any, sampler: SamplerConfig, given: GivenFrames, side: int | None = None
) -> list[Pixels]:
    """The frames of every level, of one clip."""
    shapes = runtime.config.clip_shapes
    levels = finish(generate(runtime, [CAT], sampler, side, given))
    return [
        untiled(to_pixels(x)[0], frames)
        for x, (frames, _) in zip(levels, shapes[-len(levels) :], strict=True)
    ]


@pytest.mark.parametrize("backend", [TorchBackend, MlxBackend])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.kind)
def test_a_given_frame_is_in_the_clip_exactly(
    backend: Callable[[], Any], sampler: SamplerConfig, clips: Path
) -> None:
    runtime, (first, last) = backend().runtime(clips), noise(2)
    clip, key = frames_made(runtime, sampler, GivenFrames(first, last))
    free, free_key = frames_made(runtime, sampler, GivenFrames())
    assert far(clip[0], first) <= 1
    assert far(clip[-1], last) <= 1
    assert far(key[0], first) <= 1
    assert far(clip[1], free[1]) > 10  # the others follow
    assert far(free[0], first) > 50  # the twin: not without being given
    assert far(free_key[0], first) > 50


@pytest.mark.parametrize("backend", [TorchBackend, MlxBackend])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_takes_given_frames_too(
    backend: Callable[[], Any], steps: int, tmp_path: Path
) -> None:
    runtime = backend().runtime(save_random_model(tmp_path / "student", student_of_clips()))
    sampler = SamplerConfig("student", steps, guidance_scale=2.0)
    first, last = noise(2)
    clip, key = frames_made(runtime, sampler, GivenFrames(first, last))
    assert max(far(clip[0], first), far(clip[-1], last), far(key[0], first)) <= 1
    free, _ = frames_made(runtime, sampler, GivenFrames())
    assert far(free[0], first) > 50
    assert steps == 1 or far(clip[1], free[1]) > 10  # one step leaves no time to follow


def test_both_backends_make_the_same_clip_from_a_picture(clips: Path) -> None:
    given = GivenFrames(noise(1)[0])
    sampler = SamplerConfig("dpmpp", 4, guidance_scale=2.0)
    one, other = (
        finish(generate(b().runtime(clips), [CAT], sampler, None, given))
        for b in (TorchBackend, MlxBackend)
    )
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-3)
    twin = finish(
        generate(MlxBackend().runtime(clips), [CAT], sampler, None, GivenFrames(noise(2)[1]))
    )
    assert np.abs(one[0] - twin[0]).max() > 0.1


def test_the_nest_holds_a_given_frame_at_every_level_that_has_it() -> None:
    config = preset("motion")
    assert config.clip_shapes == ((16, 32), (16, 16), (1, 16))
    first, last = noise(2, side=32)
    top, middle, key = given_at_levels(config, GivenFrames(first, last), 0)
    for (free, known), frames, pooled in ((top, 16, 1), (middle, 16, 2), (key, 1, 2)):
        masks = untiled(free[0].transpose(1, 2, 0), frames)
        values = untiled(known[0].transpose(1, 2, 0), frames)
        held = [k for k in range(frames) if masks[k].max() == 0]
        assert held == ([0, 15] if frames == 16 else [0])
        assert all(masks[k].min() == 1 for k in range(frames) if k not in held)
        small = (first / 127.5 - 1).reshape(32 // pooled, pooled, 32 // pooled, pooled, 3)
        np.testing.assert_allclose(values[0], small.mean(axis=(1, 3)), atol=1e-6)
        assert all(not values[k].any() for k in range(frames) if k not in held)
    assert len(given_at_levels(config, GivenFrames(noise(1, side=16)[0]), 1)) == 2


def test_a_given_frame_is_as_white_as_the_frames_of_training() -> None:
    """What the levels of a clip that stands still are in a batch, of 4 frames and of the first."""
    config = dataclasses.replace(preset("tiny_video"), white_headroom=0.2)
    frame = noise(1)[0]
    frame[:4] = 255
    data = Dataset(16, ["cat"], lambda _: (tiled(np.stack([frame] * 4)), 16.0), "still")
    draws = Draws(0, config.sides, config.diffusion, white_headroom=0.2)
    images = make_batch(data, [0], draws, 0).images
    for network, white in ((config, 1.2), (preset("tiny_video"), 1.0)):
        levels = given_at_levels(network, GivenFrames(frame, frame), 0)
        assert levels[0][1].max() == pytest.approx(white)
        trained = build_pyramid(images, config.model, NumpyOps())
        alike = [
            np.array_equal(known[free == 0], real[free == 0])
            for (free, known), real in zip(levels, trained, strict=True)
        ]
        assert alike == [white == 1.2] * 2  # the twin knows of no headroom


@pytest.mark.bundle  # another process decodes the file
@pytest.mark.parametrize("suffix", CLIPS)
def test_a_loop_from_one_picture_is_made_again(suffix: str, clips: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    flat = noise(1, side=4).repeat(2, axis=1).repeat(2, axis=2)[0]
    Image.fromarray(flat).save(picture)
    ends = ["--first-frame", picture, "--last-frame", picture]
    (first,) = made("--model", clips, "cat", *ends, "--out", tmp_path / f"a{suffix}")
    if suffix in LOSSLESS:  # the file holds the picture, so nothing else is needed
        clip = read_clip(first, FPS)
        assert far(clip[0], flat) == far(clip[-1], flat) == 0
        (again,) = made("--model", clips, "--like", first, "--out", tmp_path / f"b{suffix}")
        np.testing.assert_array_equal(read_clip(again, FPS), clip)
    elif suffix != ".gif":
        message = refusal("--model", clips, "--like", first, "--out", tmp_path / "c.png")
        assert "give it again with --first-frame" in message
    (again,) = made("--model", clips, "--like", first, *ends, "--out", tmp_path / f"d{suffix}")
    np.testing.assert_array_equal(all_frames(again, FPS), all_frames(first, FPS))
    assert read_recipe(again) == read_recipe(first)


@pytest.mark.bundle  # another process decodes the file
@pytest.mark.parametrize("suffix", CLIPS)
def test_a_clip_goes_on_where_another_ends(suffix: str, clips: Path, tmp_path: Path) -> None:
    (before,) = made("--model", clips, "cat", "--seed", "1", "--out", tmp_path / "a.png")
    exact = read_clip(before, FPS)
    (file,) = made("--model", clips, "--like", before, "--out", tmp_path / f"b{suffix}")
    ends = ["--first-frame", file, "--last-frame", file]
    (after,) = made("--model", clips, "cat", "--seed", "2", *ends, "--out", tmp_path / "c.png")
    clip, near = read_clip(after, FPS), 0 if suffix in LOSSLESS else 40
    assert far(clip[0], exact[-1]) <= near
    assert far(clip[-1], exact[0]) <= near
    assert far(clip[0], exact[0]) > 50  # the twin


def corners(square: Pixels) -> list[list[int]]:
    return [[int(square[y, x].mean()) for x in (1, -2)] for y in (1, -2)]


@pytest.mark.bundle  # another process decodes the file
def test_a_given_movie_is_seen_as_players_show_it(model: Model, tmp_path: Path) -> None:
    """Turned, with wide pixels, and white where it is transparent, like the clips of training."""
    quarters = np.repeat(np.array([[40, 90], [150, 220]], np.uint8), 24, axis=0)
    frame = np.stack([np.repeat(quarters, 24, axis=1)] * 3, axis=-1)
    turned = movie(tmp_path / "t.mov", [frame] * 2, "qtrle", "rgb24", turn=(90, False, False))
    given = given_frames(model.config, None, turned, None).first
    assert given is not None
    assert corners(given) == [[90, 220], [40, 150]]
    wide = np.full((64, 32, 3), 60, np.uint8)
    wide[:12], wide[-12:] = 200, 230
    path = movie(tmp_path / "w.mp4", [wide] * 2, "libx264", "yuv444p", aspect=Fraction(2), qp="0")
    given = given_frames(model.config, None, None, path).last
    assert given is not None
    assert [int(given[y].mean()) for y in (0, -1)] == pytest.approx([200, 230], abs=6)
    clear = np.zeros((16, 16, 4), np.uint8)
    path = movie(tmp_path / "c.mov", [clear] * 2, "qtrle", "argb")
    given = given_frames(model.config, None, path, None).first
    assert given is not None
    assert given.min() == 255


@pytest.mark.bundle
def test_a_still_picture_with_the_marks_of_a_clip_is_a_picture(
    model: Model, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.png", noise(1))
    given = given_frames(model.config, None, path, None).first
    assert given is not None
    np.testing.assert_array_equal(given, noise(1)[0])


def test_another_picture_beside_like_is_said(clips: Path, tmp_path: Path) -> None:
    for k in range(2):
        Image.fromarray(noise(2)[k]).save(tmp_path / f"{k}.png")
    given = ["--first-frame", tmp_path / "0.png"]
    (first,) = made("--model", clips, "cat", *given, "--out", tmp_path / "a.png")
    asked = ["sample", "--model", clips, "--like", first, "--first-frame", tmp_path / "1.png"]
    asked += ["--out", tmp_path / "b.png"]
    result = CliRunner().invoke(group, [str(a) for a in asked])
    assert "was made with another picture" in result.stderr
    assert far(read_clip(tmp_path / "b.png", FPS)[0], noise(2)[1]) == 0


# --- from Python ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(clips: Path) -> Model:
    return mdm.load(clips, backend="torch")


def test_a_clip_in_python_is_frames_and_saves_as_its_suffix_says(
    model: Model, tmp_path: Path
) -> None:
    clip = model("red heart", seed=1, steps=2, fps=12)
    assert clip.frames.shape == (4, 8, 8, 3)
    assert [np.asarray(image).shape for image in clip.images] == [(8, 8, 3)] * 4
    np.testing.assert_array_equal(tiled(clip.frames), clip.levels[0])
    np.testing.assert_array_equal(np.asarray(clip.image), clip.frames[0])
    for suffix in CLIPS:
        clip.save(tmp_path / f"a{suffix}")
        assert read_recipe(tmp_path / f"a{suffix}") == clip.recipe
    np.testing.assert_array_equal(read_clip(tmp_path / "a.webp", 12), clip.frames)
    assert (tmp_path / "a.png").read_bytes() == clip.png
    with pytest.raises(MdmError, match=r"clips are written as .png"):
        clip.save(tmp_path / "a.avi")
    assert not (tmp_path / "a.avi").exists()


def test_a_picture_in_python_is_one_frame(model_folder: Path, model: Model) -> None:
    for picture in (
        mdm.load(model_folder, backend="torch")("cat", seed=1, steps=2),
        model("cat", seed=1, steps=2, stop_at="1x8"),
    ):
        assert picture.fps is None
        np.testing.assert_array_equal(picture.frames[0], picture.levels[0])
        assert picture.recipe is not None
        assert picture.recipe.frames is None


def test_python_takes_a_file_or_an_image_as_a_frame(model: Model, tmp_path: Path) -> None:
    image = Image.fromarray(noise(1, side=24)[0])
    image.save(tmp_path / "p.png")
    one = model("cat", seed=1, steps=2, first_frame=tmp_path / "p.png")
    other = model("cat", seed=1, steps=2, first_frame=Image.fromarray(one.frames[0]))
    np.testing.assert_array_equal(one.frames, other.frames)
    assert one.recipe == other.recipe
    *_, last = model.steps("cat", seed=1, steps=2, first_frame=tmp_path / "p.png")
    np.testing.assert_array_equal(last.levels[0], one.levels[0])
    clear = Image.new("RGBA", (5, 9), (0, 0, 0, 0))
    assert model("cat", steps=1, last_frame=clear).frames[-1].min() == 255


def test_python_refuses_what_the_command_does(model: Model, model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="fps: expected"):
        model("cat", fps=float("nan"))
    with pytest.raises(ConfigError, match="belongs to clips, but 1x8 is a picture"):
        model("cat", fps=8, stop_at="1x8")
    with pytest.raises(ConfigError, match="belongs to clips, but this model makes pictures"):
        mdm.load(model_folder, backend="torch")("cat", first_frame=Image.new("RGB", (8, 8)))
    wrong = GivenFrames(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"expected bytes of shape \(8, 8, 3\)"):
        frames_made(model.runtime, SAMPLERS[0], wrong)


def test_a_level_has_one_name_in_python_and_in_the_command(model: Model) -> None:
    """4x8 are the canvas of 16 px, and a side alone could be either level of 8 px."""
    whole = model("cat", seed=1, steps=2)
    np.testing.assert_array_equal(model("cat", seed=1, steps=2, stop_at="4x8").frames, whole.frames)
    config = mdm.api.model_to_train("tiny_video", None, None, "1x8")
    assert (config.side, config.frames) == (8, 1)
    for level, said in ((8, "give 4x8 or 1x8"), ("8", "give 4x8 or 1x8"), ("x8", "such as 16x32")):
        with pytest.raises(ConfigError, match=said):
            model("cat", stop_at=level)
        with pytest.raises(ConfigError, match=said):
            mdm.api.model_to_train("tiny_video", None, None, level)
        with pytest.raises(ConfigError, match=said):
            next(model.steps("cat", stop_at=level))


def test_a_filter_sees_frames(model: Model) -> None:
    class Size:
        def __init__(self) -> None:
            self.seen = set[tuple[int, ...]]()

        def refusal_of_prompt(self, prompt: str) -> str | None:
            return None

        def refusal_of_picture(self, picture: Pixels) -> str | None:
            self.seen.add(picture.shape)
            return "white" if picture.min() == 255 else None

    size = Size()
    model("cat", seed=1, steps=2, filters=[size])
    assert size.seen == {(8, 8, 3)}
    with pytest.raises(FilteredError):
        model("cat", seed=1, steps=2, filters=[size], last_frame=Image.new("RGB", (8, 8), "white"))


def test_a_level_is_read_as_people_write_it() -> None:
    assert [AskedLevel.of(text) for text in ("16", "16x32", " 1X16 ")] == [
        AskedLevel(None, 16),
        AskedLevel(16, 32),
        AskedLevel(1, 16),
    ]
    for text in ("", "0", "x16", "16x", "16x32x4", "-4", "1.5", "9999999", "n"):
        assert AskedLevel.of(text) is None
    config = preset("motion")
    assert [side_of_level(config, AskedLevel.of(t)) for t in ("16x32", "16x16", "1x16")] == [
        *(128, 64, 16)
    ]


def test_an_inner_level_of_clips_is_a_model_of_fewer_frames_or_of_pictures() -> None:
    config = preset("motion")
    middle, key = inner_model(config, 64), inner_model(config, 16)
    assert (middle.frames, middle.video, middle.side) == (16, config.video, 64)
    assert (key.frames, key.video, key.side) == (1, None, 16)
