"""config.json of a model folder."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import state_shapes
from mdm_apple.config.strict_json import read_config, to_json


def read(folder: Path, data: bytes) -> None:
    path = folder / "config.json"
    path.write_bytes(data)
    config = read_config(ModelConfig, path)
    state_shapes(config.model)
    to_json(config).encode()
