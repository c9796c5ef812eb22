"""One file of clips: which frames it gives, how they look, and what a hostile file can do."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import FIRST, STEP, animation, gif, gray, movie, which
from malformed_clips import CASES, FPS, FRAMES, MOST, Hostile, good

from mdm_apple.config.types import Pixels
from mdm_apple.data.clips.decode import Decoded, Wanted
from mdm_apple.data.clips.decoder import Decoders, decoders
from mdm_apple.data.clips.limits import CPU_SECONDS, MEMORY
from mdm_apple.data.dataset import BadPictureError
from mdm_apple.diffusion.canvas import untiled

pytestmark = pytest.mark.bundle  # files are decoded in another process

SIDE = 32  # of a frame in the canvases below
TWO_BY_TWO = Wanted(2 * SIDE, 4, 8.0, 8)


@pytest.fixture(scope="module")
def process() -> Iterator[Decoders]:
    """One process that decodes all files of these tests, as it does in a run."""
    with decoders(1) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds good.mp4 and good.mov, which hostile files name."""
    place = tmp_path_factory.mktemp("clips")
    good(place, "good.mp4")
    good(place, "good.mov")
    return place


def frames_of(decoded: Decoded, count: int = 4) -> list[Pixels]:
    """All frames of all clips in turn."""
    return [frame for canvas in decoded.pixels for frame in untiled(canvas, count)]


def shown_frames(decoded: Decoded) -> list[int]:
    """Which frames of `gray` were taken."""
    return [which(float(frame.mean())) for frame in frames_of(decoded)]


# --- frames -----------------------------------------------------------------------------------

KINDS = [
    ("a.mp4", "libx264", "yuv420p"),
    ("a.m4v", "mpeg4", "yuv420p"),
    ("a.mov", "qtrle", "rgb24"),
    ("a.mkv", "ffv1", "bgr0"),
    ("a.webm", "libvpx", "yuv420p"),
]


@pytest.mark.parametrize(("name", "codec", "pixels"), KINDS)
def test_every_container_gives_the_frames_of_a_clip_in_turn(
    process: Decoders, tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    """24 frames a second, of which a model of 8 takes each third; ten make two clips and a half."""
    path = movie(tmp_path / name, gray(30), codec, pixels, fps=24)
    found = process.decode(path, TWO_BY_TWO)
    assert shown_frames(found) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert (found.size, found.found, found.pixels.shape) == ((64, 48), 10, (2, 64, 64, 3))
    # the name of a file says nothing
    assert shown_frames(process.decode(path.rename(tmp_path / "a.gif"), TWO_BY_TWO))[:2] == [0, 3]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_read_by_their_durations(
    process: Decoders, tmp_path: Path, suffix: str
) -> None:
    """Frames of 250 and 120 ms in turn; Pillow writes two equal neighbours as one of 240."""
    frames = gray(4)
    frames = [frames[0], frames[1], frames[1], frames[2], frames[3]]
    path = animation(tmp_path / f"a{suffix}", frames, [250, 120, 120, 250, 260])
    found = process.decode(path, TWO_BY_TWO)
    assert shown_frames(found) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("suffix", "fps", "milliseconds"),
    [
        (".webp", 30.0, [33, 34, 33] * 2),
        (".png", 30.0, [33, 34, 33] * 2),
        (".gif", 15.0, [70, 60, 70] * 2),
    ],
)
def test_a_clock_of_whole_ticks_repeats_no_frame(
    process: Decoders, tmp_path: Path, suffix: str, fps: float, milliseconds: list[int]
) -> None:
    """The times of frames are rounded to 1 or 10 ms; none is too late for that."""
    path = animation(tmp_path / f"a{suffix}", gray(6), milliseconds)
    assert shown_frames(process.decode(path, Wanted(2 * SIDE, 4, fps, 8))) == [0, 1, 2, 3]


def test_a_frame_of_no_duration_lasts_as_in_browsers(process: Decoders, tmp_path: Path) -> None:
    path = tmp_path / "hurried.gif"
    path.write_bytes(gif((8, 8), 10, 0))
    assert process.decode(path, TWO_BY_TWO).found == 8  # of a second, not of nothing


def test_frames_of_varying_length_are_taken_by_their_times(
    process: Decoders, tmp_path: Path
) -> None:
    times = [0, 100, 300, 600, 900, 1000]
    path = movie(tmp_path / "v.mkv", gray(6), "ffv1", "bgr0", times=times)
    assert shown_frames(process.decode(path, TWO_BY_TWO)) == [0, 1, 1, 2, 2, 3, 3, 3]


def test_a_file_gives_no_more_clips_than_are_wanted(process: Decoders, tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mov", gray(30), "qtrle", "rgb24")
    assert shown_frames(process.decode(path, Wanted(64, 4, 8.0, 2))) == list(range(8))
    # another pace: each clip lasts four times as long
    assert shown_frames(process.decode(path, Wanted(64, 4, 2.0, 8))) == list(range(0, 30, 4))


# --- pixels -----------------------------------------------------------------------------------


def quarters() -> Pixels:
    """64 x 48, each quarter of a level of its own."""
    frame = np.empty((48, 64, 3), np.uint8)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32], frame[24:, 32:] = 40, 90, 150, 220
    return frame


def corners(square: Pixels) -> list[list[int]]:
    """The levels near the four corners."""
    return [[int(square[y, x].mean()) for x in (4, -5)] for y in (4, -5)]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_movie_is_upright(
    process: Decoders, tmp_path: Path, degrees: int, flipped: bool
) -> None:
    turn = (degrees, flipped, False)
    path = movie(tmp_path / "t.mov", [quarters()] * 8, "qtrle", "rgb24", turn=turn)
    found = process.decode(path, TWO_BY_TWO)
    expected = np.rot90(np.array([[40, 90], [150, 220]]), degrees // 90)
    expected = expected[:, ::-1] if flipped else expected
    assert corners(frames_of(found)[0]) == expected.tolist()
    assert found.size == ((48, 64) if degrees % 180 else (64, 48))


def test_wide_pixels_are_made_square_before_the_crop(process: Decoders, tmp_path: Path) -> None:
    """32 x 64 stored pixels, twice as wide as high, are a square, of which nothing is cut."""
    frame = np.full((64, 32, 3), 60, np.uint8)
    frame[:12], frame[-12:] = 200, 230
    for aspect, levels in ((Fraction(2), [200, 230]), (None, [60, 60])):
        path = movie(tmp_path / "w.mp4", [frame] * 8, "libx264", "yuv444p", aspect=aspect, qp="0")
        found = process.decode(path, TWO_BY_TWO)
        square = frames_of(found)[0]
        assert [int(square[y].mean()) for y in (2, -3)] == pytest.approx(levels, abs=4)
        assert found.size == (64 if aspect else 32, 64)


def see_through() -> Pixels:
    """Red, of which the right half is not seen."""
    frame = np.zeros((48, 64, 4), np.uint8)
    frame[..., 0], frame[:, :32, 3] = 200, 255
    return frame


@pytest.mark.parametrize("name", ["a.mov", "a.gif", "a.webp", "a.png", "a.webm"])
def test_what_is_transparent_is_white(process: Decoders, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".mov":
        movie(path, [see_through()] * 8, "qtrle", "argb")
    elif path.suffix == ".webm":
        notes = {"alpha_mode": "1"}
        movie(path, [see_through()] * 8, "libvpx-vp9", "yuva420p", notes=notes, lossless="1")
    else:
        other = see_through()
        other[0, 0] = (0, 0, 200, 255)  # or it would be a still
        animation(path, [see_through(), other] * 4)
    square = frames_of(process.decode(path, TWO_BY_TWO))[0]
    assert square[16, 28].tolist() == [255, 255, 255]
    assert square[16, 4].tolist() == pytest.approx([200, 0, 0], abs=3)


@pytest.mark.parametrize(("matrix", "other"), [(1, 5), (5, 1)])  # BT.709, BT.601
@pytest.mark.parametrize("reach", [1, 2])  # limited, full
def test_colors_are_converted_as_their_tags_say(
    process: Decoders, tmp_path: Path, matrix: int, other: int, reach: int
) -> None:
    color = np.array([210, 60, 30], np.uint8)
    frame = np.broadcast_to(color, (48, 64, 3)).copy()

    def seen(tag: int) -> int:
        path = movie(
            tmp_path / f"{tag}.mp4",
            [frame] * 8,
            "libx264",
            "yuv444p",
            colors=(matrix, reach),
            tag=tag,
            qp="0",
        )
        pixel = frames_of(process.decode(path, TWO_BY_TWO))[0][16, 16]
        return int(np.abs(pixel.astype(int) - color).max())

    assert seen(matrix) <= 3
    assert seen(other) > 8


def test_frames_are_reduced_as_pictures_are(process: Decoders, tmp_path: Path) -> None:
    """Fine stripes become their mean, not every other one of them."""
    frame = np.zeros((128, 128, 3), np.uint8)
    frame[:, ::2] = 200
    path = movie(tmp_path / "s.mov", [frame] * 8, "qtrle", "rgb24")
    square = frames_of(process.decode(path, TWO_BY_TWO))[0].astype(int)
    assert np.abs(square[:, 4:-4] - 100).max() <= 2


# --- hostile files ----------------------------------------------------------------------------


def test_there_are_forty_hostile_files() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_one_sentence(process: Decoders, folder: Path, case: Hostile) -> None:
    if sys.platform != "linux" and "GiB of memory" in str(case.says):
        pytest.skip("this system keeps no limit of memory for a process")
    path = case.build(folder)
    started = time.monotonic()
    try:
        found = process.decode(path, Wanted(2 * SIDE, FRAMES, FPS, MOST))
    except BadPictureError as error:
        sentence = str(error)
        assert isinstance(case.says, str), sentence
        assert case.says in sentence
        assert sentence.startswith(f"{path}: ")
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert len(sentence) < 300 + len(str(path))
    else:
        assert case.says == len(found.pixels)
    assert time.monotonic() - started < CPU_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no limit of memory")
def test_it_is_the_limit_of_memory_that_refuses(folder: Path) -> None:
    """Without it the process reads the file, and takes more memory than it may."""
    case = next(case for case in CASES if "GiB of memory" in str(case.says) and "RGBA" in case.name)
    path = case.build(folder)

    def most(memory: int) -> int:
        with decoders(1, memory=memory) as process:
            with contextlib.suppress(BadPictureError):
                process.decode(path, Wanted(2 * SIDE, FRAMES, FPS, MOST))
            status = Path(f"/proc/{process.numbers()[0]}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    assert most(MEMORY) <= MEMORY < most(0)


def test_a_list_of_files_would_open_them_if_its_container_were_not_forced(folder: Path) -> None:
    """The twin of the concat case: it does name a file that can be read."""
    path = folder / "danger.mp4"
    path.write_bytes(b"ffconcat version 1.0\nfile good.mp4\n")
    with av.open(str(path)) as file:
        assert len(list(file.decode(video=0))) == 16
    path = next(c for c in CASES if c.name == "MOV that names another file").build(folder)
    with av.open(str(path), options={"enable_drefs": "1"}) as file:
        assert len(list(file.decode(video=0))) == 16


def test_a_file_that_takes_too_long_ends_its_process_and_the_next_is_decoded(
    folder: Path,
) -> None:
    path = folder / "slow.gif"
    path.write_bytes(gif((6000, 6000), 200, 120))
    with decoders(1, seconds=1) as process:
        with pytest.raises(BadPictureError, match="more than 1 seconds of processor time"):
            process.decode(path, TWO_BY_TWO)
        assert len(process.decode(folder / "good.mp4", TWO_BY_TWO).pixels) == 4


def test_a_crash_of_the_decoder_is_one_sentence_and_the_next_file_is_decoded(
    folder: Path,
) -> None:
    with decoders(1) as process:
        process.decode(folder / "good.mp4", TWO_BY_TWO)
        os.kill(process.numbers()[0], signal.SIGSEGV)
        with pytest.raises(BadPictureError, match=r"its decoder crashed \(signal 11\); repair"):
            process.decode(folder / "good.mp4", TWO_BY_TWO)
        assert len(process.decode(folder / "good.mp4", TWO_BY_TWO).pixels) == 4


def test_no_process_is_left(folder: Path) -> None:
    with decoders(2) as process:
        process.decode(folder / "good.mp4", TWO_BY_TWO)
        number = process.numbers()[0]
        os.kill(number, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_levels_of_the_frames_can_be_told_apart() -> None:
    """What these tests rest on: one frame more or less is another level."""
    levels = [float(frame.mean()) for frame in gray(30)]
    assert [which(level) for level in levels] == list(range(30))
    assert (FIRST + 29 * STEP) < 256
