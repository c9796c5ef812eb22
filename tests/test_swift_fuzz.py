"""Damaged files in Swift: no crash, no hang, no unbounded memory; refusals are sentences.

A slice per run, from a new seed; MDM_FUZZ=10 makes ten times as many. Manifests are damaged in
test_swift_bundle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from swift_tools import Dump

from mdm_apple.bundled_models import EMOJI
from mdm_apple.conversion.run.serve_frames import pack_tensor
from mdm_apple.storage.tensorfile import write_tensors

MUTATIONS = {"frames": 10_000, "tokenizer": 600, "tensors": 10_000, "png": 8000}


@pytest.fixture
def victims(tmp_path: Path) -> dict[str, Path]:
    write_tensors(
        tmp_path / "tensors",
        {
            "a": np.arange(12, dtype=np.float32).reshape(3, 4),
            "b": np.arange(5, dtype=np.float64),
            "c": np.arange(6, dtype=np.float16).reshape(1, 6),
        },
    )
    pixels = np.cumsum(np.random.RandomState(0).randint(-3, 4, (24, 24, 3)), 0).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "png", format="PNG")
    frame = pack_tensor("x", np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2))
    (tmp_path / "frame").write_bytes(frame)
    return {
        "frames": tmp_path / "frame",
        "tokenizer": EMOJI / "tokenizer.model",
        "tensors": tmp_path / "tensors",
        "png": tmp_path / "png",
    }


@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_files_are_refused(dump: Dump, victims: dict[str, Path], kind: str) -> None:
    dump.fuzz(kind, victims[kind], MUTATIONS[kind])
