"""The models that come in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mdm_apple.bundled_models import EMOJI, EMOJI_STUDENT, MOTION
from mdm_apple.cli import group
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.storage.atomic_folder import recorded_hashes, verify_files
from mdm_apple.storage.model_folder import load_model_config, load_weights, weights_sha256
from mdm_apple.training.boot import BootConfig, student_config

BOX = pytest.mark.parametrize(
    "folder", [EMOJI, EMOJI_STUDENT, MOTION], ids=["teacher", "student", "motion"]
)
LARGEST = {EMOJI: 16_000_000, EMOJI_STUDENT: 16_000_000, MOTION: 10_000_000}  # bytes


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@BOX
def test_its_files_are_the_recorded_ones_and_the_card_names_their_hashes(folder: Path) -> None:
    verify_files(folder)
    for name, written in recorded_hashes(folder).items():
        if name.endswith((".safetensors", ".model")):
            assert written.sha256 in card(folder), name


@BOX
def test_it_holds_nothing_but_weights_tokenizer_captions_and_text(folder: Path) -> None:
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds <= {".json", ".safetensors", ".model", ".md", ".txt"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST[folder]


@BOX
def test_its_weights_are_strictly_those_of_the_preset(folder: Path) -> None:
    config = load_model_config(folder)
    assert config.model == expected_model(folder)
    assert config.diffusion == preset("motion" if folder == MOTION else "emoji").diffusion
    assert config.provenance.license == "CC-BY-4.0"
    assert "CC-BY-4.0" in card(folder)
    for which in ("model", "text_encoder"):
        weights = load_weights(folder, which)  # type: ignore[arg-type]
        assert all(np.isfinite(value).all() for value in weights.values())


def expected_model(folder: Path) -> UNetConfig:
    if folder == MOTION:
        return preset("motion").model
    teacher = preset("emoji")
    if folder == EMOJI:
        return teacher.model
    return student_config(teacher, BootConfig(flow_map=4, guidance=(2.0, 4.0))).model


def test_the_student_names_the_teacher_beside_it() -> None:
    notes = load_model_config(EMOJI_STUDENT).provenance.notes
    assert weights_sha256(EMOJI) in (notes or "")


def test_sample_without_a_model_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "heart.png"
    asked = [
        "sample",
        "--prompt",
        "red heart",
        "--steps",
        "10",
        "--sampler",
        "dpmpp",
        "--seed",
        "0",
    ]
    result = CliRunner().invoke(
        group, [*asked, "--guidance", "3", "--stop-at", "16", "--quiet", "--out", str(out)]
    )
    assert result.exit_code == 0, result.exception
    with Image.open(out) as picture:
        pixels = np.asarray(picture, np.float64)
    assert pixels.shape == (16, 16, 3)
    assert is_red_heart(pixels[5:10, 5:11])


def is_red_heart(middle: np.ndarray) -> bool:
    red, green, blue = middle.mean(axis=(0, 1))
    return red > 150 and max(green, blue) < red - 50


@pytest.mark.parametrize("steps", ["1", "4"])
def test_sampler_student_without_a_model_takes_the_student(steps: str, tmp_path: Path) -> None:
    out = tmp_path / "heart.png"
    asked = ["sample", "--prompt", "red heart", "--sampler", "student", "--steps", steps]
    asked += ["--seed", "0"]
    result = CliRunner().invoke(group, [*asked, "--quiet", "--out", str(out)])
    assert result.exit_code == 0, result.exception
    with Image.open(out) as picture:
        pixels = np.asarray(picture, np.float64)
    assert pixels.shape == (64, 64, 3)
    assert is_red_heart(pixels[20:40, 20:44])
    assert (pixels[:6, :6] > 240).all()  # the corner is white


def test_the_model_of_clips_moves_a_rocket_up(tmp_path: Path) -> None:
    out = tmp_path / "clip.png"
    asked = ["sample", "rocket moving up", "--model", "box:motion", "--seed", "1", "--quiet"]
    result = CliRunner().invoke(group, [*asked, "--steps", "6", "--out", str(out)])
    assert result.exit_code == 0, result.exception
    heights = list[float]()
    with Image.open(out) as clip:
        for number in range(getattr(clip, "n_frames", 1)):
            clip.seek(number)
            dark = 255 - np.asarray(clip.convert("L"), np.float64)
            heights.append(float((dark.sum(axis=1) * np.arange(32)).sum() / dark.sum()))
    assert len(heights) == 16
    assert heights[0] > heights[-1] + 6  # pixels, counted from the top


@pytest.mark.parametrize("side", [64, 32, 16])
def test_every_side_can_be_made_alone(side: int, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    asked = ["sample", "--prompt", "lemon", "--steps", "1", "--stop-at", str(side), "--quiet"]
    result = CliRunner().invoke(group, [*asked, "--out", str(out)])
    assert result.exit_code == 0, result.exception
    with Image.open(out) as picture:
        assert picture.size == (side, side)
