"""The model that comes in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mdm_apple import checkpoint
from mdm_apple.atomic_folder import recorded_hashes, verify_files
from mdm_apple.cli import group
from mdm_apple.embedded import EMOJI
from mdm_apple.presets import preset

CARD = (EMOJI / "README.md").read_text(encoding="utf-8")


def test_its_files_are_the_recorded_ones_and_the_card_names_their_hashes() -> None:
    verify_files(EMOJI)
    for name, written in recorded_hashes(EMOJI).items():
        if name.endswith((".safetensors", ".model")):
            assert written.sha256 in CARD, name


def test_it_holds_nothing_but_weights_tokenizer_captions_and_text() -> None:
    kinds = {path.suffix for path in EMOJI.iterdir()}
    assert kinds <= {".json", ".safetensors", ".model", ".md", ".txt"}
    assert sum(path.stat().st_size for path in EMOJI.iterdir()) < 16_000_000


def test_its_weights_are_strictly_those_of_the_preset() -> None:
    config = checkpoint.load_model_config(EMOJI)
    assert config.model == preset("emoji").model
    assert config.provenance.license == "CC-BY-4.0"
    assert "CC-BY-4.0" in CARD
    for which in ("model", "text_encoder"):
        weights = checkpoint.load_weights(EMOJI, which)  # type: ignore[arg-type]
        assert all(np.isfinite(value).all() for value in weights.values())


def test_sample_without_a_model_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "heart.png"
    asked = ["sample", "--prompt", "red heart", "--steps", "10", "--sampler", "dpmpp"]
    result = CliRunner().invoke(
        group, [*asked, "--guidance", "3", "--stop-at", "16", "--quiet", "--out", str(out)]
    )
    assert result.exit_code == 0, result.exception
    with Image.open(out) as picture:
        pixels = np.asarray(picture, np.float64)
    assert pixels.shape == (16, 16, 3)
    red, green, blue = pixels[5:10, 5:11].mean(axis=(0, 1))
    assert red > 150
    assert max(green, blue) < red - 50  # a heart, and a red one


@pytest.mark.parametrize("side", [64, 32, 16])
def test_every_side_can_be_made_alone(side: int, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    asked = ["sample", "--prompt", "lemon", "--steps", "1", "--stop-at", str(side), "--quiet"]
    result = CliRunner().invoke(group, [*asked, "--out", str(out)])
    assert result.exit_code == 0, result.exception
    with Image.open(out) as picture:
        assert picture.size == (side, side)
