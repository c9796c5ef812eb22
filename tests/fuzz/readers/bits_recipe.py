"""A recipe of bits for the weights of a bundle."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.config.strict_json import to_json
from mdm_apple.conversion.compress.recipe import read_recipe


def read(folder: Path, data: bytes) -> None:
    path = folder / "recipe.json"
    path.write_bytes(data)
    to_json(read_recipe(path)).encode()
