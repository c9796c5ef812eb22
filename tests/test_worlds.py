"""One run on changing numbers of processes, and in changing parts, is the run of one process."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small import trainable_model
from train_process import MDM, PATIENCE, arguments, logged, resuming

from mdm_apple.config.strict_json import to_json
from mdm_apple.storage.model_folder import load_weights

BATCH, STEPS = 8, 8  # the steps of each stage
Stage = tuple[int, int]  # processes, parts


def launched(backend: str, processes: int, asked: Sequence[str]) -> None:
    command = [sys.executable, str(MDM), *asked]
    if processes > 1 and backend == "torch":
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
        command[1:1] = [*torchrun, str(processes)]
    elif processes > 1:
        ring = ("-n", str(processes), "--backend", "ring", "--")
        command[:0] = [str(MDM.with_name("mlx.launch")), *ring]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def run(
    backend: str, config: Path, pictures: Path, out: Path, stages: Sequence[Stage], steps: int
) -> None:
    """Each stage resumes the one before, which was told to end after so many steps."""
    for number, (processes, parts) in enumerate(stages, 1):
        asked = arguments(config, pictures, out, number * steps, "--accumulate", str(parts))
        asked[asked.index("--batch-size") + 1] = str(BATCH)
        asked[asked.index("torch")] = backend
        asked += ["--validation-share", "0.3", "--validate-every", str(STEPS)]
        launched(backend, processes, resuming(asked) if number > 1 else asked)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixed: the higher of two levels sees the first half of a batch. The text encoder drops."""
    model = trainable_model()
    assert model.text is not None
    assert model.text.encoder is not None
    encoder = dataclasses.replace(model.text.encoder, dropout=0.1)
    model = dataclasses.replace(
        model,
        diffusion=dataclasses.replace(model.diffusion, mixed_ratio=(1.0, 1.0)),
        text=dataclasses.replace(model.text, encoder=encoder),
    )
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(to_json(model), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("backend", "stages"),
    [
        ("torch", [(3, 1), (1, 3)]),  # uneven rows, uneven parts
        pytest.param(
            "torch", [(3, 4), (8, 1), (2, 1)], marks=pytest.mark.slow
        ),  # parts without rows
        pytest.param("mlx", [(3, 1), (1, 3), (2, 3)], marks=pytest.mark.slow),
        pytest.param("torch", [(2, 1), (1, 1), (2, 1)], marks=pytest.mark.slow),
        pytest.param("torch", [(4, 2), (2, 3), (1, 5)], marks=pytest.mark.slow),
        pytest.param("mlx", [(2, 2), (1, 1), (2, 3)], marks=pytest.mark.slow),
    ],
)
def test_a_run_learns_the_same_on_any_number_of_processes_and_in_any_parts(
    config: Path,
    pictures: Path,
    tmp_path: Path,
    backend: str,
    stages: list[Stage],
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(backend, config, pictures, alone, [(1, 1)], STEPS * len(stages))
    run(backend, config, pictures, shared, stages, STEPS)
    for kind in ("loss", "validation_loss"):
        one, other = logged(alone, kind), logged(shared, kind)
        assert list(one) == list(other)
        apart = max(abs(other[step] / one[step] - 1) for step in one)
        with capsys.disabled():
            print(f"\n{backend} {stages}: {kind} differs by {apart:.1e}", end="")
        assert apart <= 1e-5
    assert len(logged(alone)) == STEPS * len(stages)
    weights = load_weights(shared)
    for name, value in load_weights(alone).items():
        np.testing.assert_allclose(weights[name], value, atol=1e-4, err_msg=name)
