"""A safetensors file: weights, the state of a run, tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdm_apple.storage.tensorfile import read_tensors


def read(folder: Path, data: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    for value in read_tensors(path).values():
        np.isfinite(value).all()
