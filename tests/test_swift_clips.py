"""Clips in Swift: canvases and animated PNGs to the byte, and clips of a real bundle.

The bundle is a random `tiny_video`, run by `mdm serve-bundle`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from swift_pictures import run
from swift_tools import Dump

from mdm_apple.cli.sample_command import command as sample_command
from mdm_apple.config.types import Pixels
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.run.runtime import BundleRuntime
from mdm_apple.diffusion.canvas import tiled, untiled
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.pictures import to_pixels
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.tensorfile import read_tensors

pytest_plugins = ["bundles", "swift_bundles"]


def some_frames(count: int, side: int) -> Pixels:
    return np.random.RandomState(None).randint(0, 256, (count, side, side, 3), np.uint8)


def frames_of(path: Path) -> tuple[list[Pixels], list[float]]:
    """Frames and their milliseconds, as Pillow reads them."""
    frames, times = list[Pixels](), list[float]()
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            times.append(frame.info["duration"])
    return frames, times


@pytest.mark.parametrize(("count", "side"), [(1, 5), (4, 3), (9, 1), (16, 32)])
def test_canvases_are_those_of_python(dump: Dump, tmp_path: Path, count: int, side: int) -> None:
    frames = some_frames(count, side)
    (tmp_path / "raw").write_bytes(frames.tobytes())
    dump("fold", tmp_path / "raw", side, tmp_path / "canvas", tmp_path / "back")
    canvas = tiled(frames)
    assert (tmp_path / "canvas").read_bytes() == canvas.tobytes()
    assert (tmp_path / "back").read_bytes() == untiled(canvas, count).tobytes()
    if count > 1:  # frames in another order would be seen
        assert (tmp_path / "canvas").read_bytes() != tiled(frames[::-1]).tobytes()


@pytest.mark.parametrize("fps", [1, 8, 24, 240])
def test_animated_pngs_are_decoded_by_pillow(dump: Dump, tmp_path: Path, fps: int) -> None:
    frames = some_frames(5, 33)
    frames[1] = frames[0]  # equal neighbours stay two frames
    (tmp_path / "raw").write_bytes(frames.tobytes())
    dump("write-apng", tmp_path / "raw", 33, fps, tmp_path / "clip.png")
    found, times = frames_of(tmp_path / "clip.png")
    assert len(found) == 5
    assert all(np.array_equal(a, b) for a, b in zip(found, frames, strict=True))
    assert times == pytest.approx([1000 / fps] * 5)
    with Image.open(tmp_path / "clip.png") as image:
        assert image.info["loop"] == 0  # for ever
        assert image.info["mdm"] == '{"a": "é"}'


# --- a bundle -----------------------------------------------------------------------------

WORDS = ["--seed", 7, "--steps", 3, "--guidance", 2]
SAMPLER = SamplerConfig(num_steps=3, guidance_scale=2)


def reference(bundle: Bundle, seed: int) -> list[NDArray[np.float32]]:
    """Canvases (1, 3, S, S) of both levels, made in Python."""
    return finish(generate(BundleRuntime(bundle), [Prompt("red heart", seed)], SAMPLER))


def test_a_clip_is_that_of_the_reference(program: list[str], clips: Bundle, tmp_path: Path) -> None:
    """To the bit, on Linux; and so are the previews of its last step."""
    seed = random.SystemRandom().randrange(2**32)
    words = ["--prompt", "red heart", *WORDS[2:], "--seed", seed]
    out, raw, shown = tmp_path / "clip.png", tmp_path / "raw", tmp_path / "previews"
    done = run(program, clips.path, *words, "--out", out, "--raw", raw, "--previews", shown)
    assert done.returncode == 0, done.stderr
    wanted, found = reference(clips, seed), read_tensors(raw)
    assert {"picture_16", "picture_8"} == set(found)
    assert all(np.array_equal(found[f"picture_{x.shape[-1]}"], x) for x in wanted)
    assert not np.array_equal(found["picture_16"], reference(clips, seed ^ 1)[0])
    frames, times = frames_of(out)
    assert times == [125] * 4
    assert np.array_equal(np.stack(frames), untiled(to_pixels(wanted[0])[0], 4))
    assert {path.name for path in shown.iterdir()} == {
        f"{side}_{step}.png" for side in (16, 8) for step in range(3)
    }
    assert np.array_equal(frames_of(shown / "16_2.png")[0], frames)


def test_python_makes_the_clip_again(program: list[str], clips: Bundle, tmp_path: Path) -> None:
    """`mdm sample --like` takes the recipe from the file."""
    ours, theirs = tmp_path / "ours.png", tmp_path / "theirs.png"
    words = ["--prompt", 'red "heart" é', "--negative", "blue", *WORDS]
    done = run(program, clips.path, *words, "--out", ours)
    assert done.returncode == 0, done.stderr
    with Image.open(ours) as image:
        recipe = json.loads(image.info["mdm"])
    assert (recipe["frames"], recipe["fps"], recipe["seed"]) == (4, 8, 7)
    assert (recipe["model"], recipe["backend"]) == (clips.manifest.digest, "reference")
    arguments = ["--like", str(ours), "--model", str(clips.path), "--out", str(theirs)]
    again = CliRunner().invoke(sample_command, arguments)
    assert again.exit_code == 0, again.output
    assert "other weights" not in again.output
    (frames, times), (wanted, said) = frames_of(ours), frames_of(theirs)
    assert np.array_equal(np.stack(frames), np.stack(wanted))
    assert times == said
    with Image.open(theirs) as image:
        assert json.loads(image.info["mdm"]) == recipe


def test_the_key_frame_is_a_picture(program: list[str], clips: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "key.png"
    words = ["--prompt", "red heart", *WORDS, "--stop-at", "1x8", "--out", out]
    done = run(program, clips.path, *words)
    assert done.returncode == 0, done.stderr
    prompts = [Prompt("red heart", 7)]
    (key,) = finish(generate(BundleRuntime(clips), prompts, SAMPLER, 8))
    with Image.open(out) as image:
        assert getattr(image, "n_frames", 1) == 1
        assert np.array_equal(np.asarray(image), to_pixels(key)[0])
        assert "frames" not in json.loads(image.info["mdm"])


@pytest.mark.parametrize("level", ["8", "4x4", "16", "4x"])
def test_levels_that_clips_do_not_have_are_refused(
    program: list[str], clips: Bundle, tmp_path: Path, level: str
) -> None:
    out = tmp_path / "x.png"
    done = run(program, clips.path, "--prompt", "x", "--stop-at", level, "--out", out)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "expected a side" in line if level == "4x" else "give frames x side: 4x8, 1x8" in line
    assert not out.exists()
