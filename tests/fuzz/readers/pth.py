"""A checkpoint of Apple's: the zip, its description, and every tensor in it."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.apple_checkpoints.pth import read_pth

MAX_BYTES = 1 << 24  # of a tensor whose numbers are read: strides of zero repeat a few without end


def read(folder: Path, data: bytes) -> None:
    path = folder / "weights.pth"
    path.write_bytes(data)
    for tensor in read_pth(path).state_dict.values():
        values = tensor.numpy()
        if values.nbytes <= MAX_BYTES:
            values.sum()
