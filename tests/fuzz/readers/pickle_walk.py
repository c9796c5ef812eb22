"""The description of the tensors inside a checkpoint, without the zip around it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fuzz.readers.pth import MAX_BYTES

from mdm_apple.apple_checkpoints.pth import read_pth

STORAGES = {"0": 24, "1": 32, "2": 4}  # bytes, as the kept descriptions have them


def read(folder: Path, data: bytes) -> None:
    path = folder / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, size in STORAGES.items():
            archive.writestr(f"archive/data/{key}", bytes(size))
    for tensor in read_pth(path).state_dict.values():
        values = tensor.numpy()
        if values.nbytes <= MAX_BYTES:
            values.sum()
