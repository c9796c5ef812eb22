"""`mdm import`: what the new folder says of its origin."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner
from small import APPLE_YAML as YAML
from small import random_state

from mdm_apple.apple_checkpoints.yaml_file import read_apple_yaml
from mdm_apple.cli import group
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.presets import preset
from mdm_apple.storage.model_folder import load_model_config, load_weights


def imported(config: ModelConfig, folder: Path, *how: str) -> ModelConfig:
    weights = random_state(config.model)
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, folder / "model.pth")
    out = folder / "out"
    call = ["import", str(folder / "model.pth"), *how, "--out", str(out), "--quiet"]
    result = CliRunner().invoke(group, call)
    assert result.exit_code == 0, result.exception
    assert all((load_weights(out)[name] == value).all() for name, value in weights.items())
    return load_model_config(out)


def test_by_yaml_the_source_stays_and_the_file_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(YAML)
    said = imported(read_apple_yaml(path).config, tmp_path, "--yaml", str(path)).provenance
    assert (said.source, said.notes) == ("https://github.com/apple/ml-mdm", "small.yaml")
    assert said.license is None


def test_by_preset_the_source_is_that_of_the_preset(tmp_path: Path) -> None:
    config = preset("tiny")
    assert imported(config, tmp_path, "--preset", "tiny").provenance == config.provenance
