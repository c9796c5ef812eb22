"""A configuration file of Apple's."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.apple_checkpoints.yaml_file import read_apple_yaml
from mdm_apple.config.strict_json import to_json


def read(folder: Path, data: bytes) -> None:
    path = folder / "model.yaml"
    path.write_bytes(data)
    to_json(read_apple_yaml(path).config).encode()
