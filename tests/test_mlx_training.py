"""Training in MLX: one trace, memory, several processes, without the other packages."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends import MlxBackend
from paired import batch_of, nest, no_text
from small import random_state, trainable_model
from train_process import MDM, PATIENCE, arguments, logged

from mdm_apple.config.model import DiffusionConfig, ModelConfig, ScheduleConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.strict_json import to_json
from mdm_apple.config.types import TrainingPrecision as Precision
from mdm_apple.training.memory_estimate import estimate
from mdm_apple.training.settings import TrainConfig

mx = pytest.importorskip("mlx.core")

from mdm_apple.mlx import learner as mlx_train  # noqa: E402

# of `nest` with 16 pictures, recorded with mlx 0.32.4; a tenth to either side is let pass
FORWARD_MB, STEP_MB = 7.6, 25.1


def one_level(side: int = 8, **changes: Any) -> ModelConfig:
    unet = UNetConfig((32,), (1,), (0,), mid_blocks=False, temb_dim=32, **changes)
    return ModelConfig(unet, side, DiffusionConfig(ScheduleConfig("cosine")))


# --- one compiled step ------------------------------------------------------------------------


@pytest.fixture
def compiling() -> Iterator[None]:
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.usefixtures("compiling")
def test_a_compiled_step_equals_an_eager_one_and_is_traced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, train = one_level(dropout=0.1), TrainConfig(steps=50, batch_size=2, warmup_steps=5)
    traces = {True: 0, False: 0}
    which = True
    loss = mlx_train.nested_loss

    def counted(*given: Any) -> Any:
        traces[which] += 1
        return loss(*given)

    monkeypatch.setattr(mlx_train, "nested_loss", counted)
    found = []
    for which in (True, False):
        net = MlxBackend().network(config.model, random_state(config.model))
        learner = mlx_train.MlxPictureLearner(net, config, train, compiled=which)
        metrics = [learner.step(batch_of(config, 2, k), k) for k in range(50)]
        found.append((metrics, learner.snapshot()))
    assert traces == {True: 1, False: 50}
    (compiled, one), (eager, other) = found
    assert compiled == eager
    for a, b in ((one.weights, other.weights), (one.ema, other.ema)):
        assert a is not None
        assert b is not None
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_nest_equals_an_eager_one(precision: Precision) -> None:
    """Two levels, recomputed activations, accumulated parts."""
    config = nest()
    train = TrainConfig(3, 4, accumulate=2, checkpointing=True, precision=precision)
    found = []
    for compiled in (True, False):
        net = MlxBackend().network(config.model, random_state(config.model))
        learner = mlx_train.MlxPictureLearner(net, config, train, compiled=compiled)
        metrics = [learner.step(batch_of(config, 4, k), k) for k in range(3)]
        found.append((metrics, learner.snapshot().weights))
    (one, weights), (other, wanted) = found
    assert one == other
    for name, value in wanted.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


# --- memory -----------------------------------------------------------------------------------


def step_peak(config: ModelConfig, checkpointing: bool) -> int:
    """Bytes at most in use during a step, without what earlier tests left behind."""
    gc.collect()
    before = mx.get_active_memory()
    train = TrainConfig(steps=2, batch_size=16, checkpointing=checkpointing)
    learner = MlxBackend().learner(config, train, random_state(config.model), no_text)
    batch = batch_of(config, 16)
    mx.clear_cache()
    mx.reset_peak_memory()
    learner.step(batch, 0)
    return int(mx.get_peak_memory()) - before


def test_recomputing_activations_saves_a_fifth_and_the_estimate_is_of_the_right_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unet = UNetConfig((16, 16), (2, 2), (0, 0), mid_blocks=False, temb_dim=32, num_groups=16)
    config = ModelConfig(unet, 64)
    kept, recomputed = step_peak(config, False), step_peak(config, True)
    predicted, again = (
        estimate(config, TrainConfig(steps=1, batch_size=16, checkpointing=recompute)).total(16)
        for recompute in (False, True)
    )
    with capsys.disabled():
        print(
            f"\n64 px, batch 16: peak {kept / 1e6:.0f} MB, recomputing {recomputed / 1e6:.0f} MB "
            f"({recomputed / kept:.2f}), computed beforehand {predicted / 1e6:.0f} "
            f"and {again / 1e6:.0f} MB",
            end="",
        )
    assert recomputed <= 0.8 * kept
    # a CPU unrolls the input of its convolutions as well
    assert 1 <= kept / predicted <= 1.7
    assert 1 <= recomputed / again <= 2


def forward_peak(config: ModelConfig, rows: int) -> int:
    """Bytes at most in use while the network predicts, without its weights."""
    net = MlxBackend().network(config.model, random_state(config.model))
    images = [mx.array(level.transpose(0, 2, 3, 1)) for level in batch_of(config, rows).noise]
    times = mx.array([3] * rows)
    mx.eval(net.parameters(), images, times)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(net(images, times))
    return int(mx.get_peak_memory()) - before


def test_forward_and_step_need_no_more_memory_than_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A graph that keeps more, or an operator that is no longer fused, shows here."""
    forward, step = forward_peak(nest(), 16), step_peak(nest(), False)
    with capsys.disabled():
        print(f"\npeak: forward {forward / 1e6:.2f} MB, step {step / 1e6:.2f} MB", end="")
    assert forward / 1e6 == pytest.approx(FORWARD_MB, rel=0.1)
    assert step / 1e6 == pytest.approx(STEP_MB, rel=0.1)


def test_a_quarter_more_to_keep_does_not_pass_as_recorded() -> None:
    assert forward_peak(nest(), 20) / 1e6 > 1.1 * FORWARD_MB


# --- processes --------------------------------------------------------------------------------


def test_two_ring_processes_learn_what_one_does_with_the_whole_batch(
    pictures: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    launch = [str(MDM.with_name("mlx.launch")), "-n", "2", "--backend", "ring", "--"]
    for out, how in ((one, []), (two, launch)):
        asked = arguments(config, pictures, out, 10)
        asked[asked.index("torch")] = "mlx"
        done = subprocess.run(
            [*how, sys.executable, str(MDM), *asked],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (out / "metrics.jsonl").is_file(), done.stderr
    alone, together = logged(one), logged(two)
    assert list(alone) == list(together) == list(range(10))
    assert list(together.values()) == pytest.approx(list(alone.values()), rel=1e-5)


def test_a_broken_list_of_hosts_is_refused_in_one_sentence(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text("garbage")
    done = subprocess.run(
        [sys.executable, "-c", "from mdm_apple.mlx.learner import process_rank; process_rank()"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"},
    )
    assert done.returncode == 1
    assert "MdmError: MLX_HOSTFILE: the processes cannot be joined" in done.stderr


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Missing())
from mdm_apple.cli import main
sys.argv = ["mdm", *sys.argv[2:]]
main()
"""


def mdm_without(missing: str, *asked: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *map(str, asked)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "MLX_DISABLE_COMPILE": "1"},
    )


def test_training_and_sampling_need_neither_torch_nor_coremltools(
    pictures: Path, tmp_path: Path
) -> None:
    weights = random_state(preset("tiny").model)
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, tmp_path / "model.pth")
    imported = ("import", tmp_path / "model.pth", "--preset", "tiny", "--out", tmp_path / "tiny")
    done = mdm_without("torch,coremltools", *imported, "--quiet")
    assert done.returncode == 0, done.stderr
    config, out = tmp_path / "config.json", tmp_path / "run"
    config.write_text(to_json(trainable_model()), encoding="utf-8")
    asked = arguments(config, pictures, out, 2)
    asked[asked.index("torch")] = "mlx"
    done = mdm_without("torch,coremltools", *asked)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "heart.png"
    sample = ("sample", "--model", out, "--prompt", "red heart", "--steps", "2", "--backend", "mlx")
    done = mdm_without("torch,coremltools", *sample, "--quiet", "--out", picture)
    assert done.returncode == 0, done.stderr
    assert picture.is_file()


@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_machine_without_mlx_is_told_what_to_install(
    command: str, model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    asked: dict[str, tuple[str | Path, ...]] = {
        "train": ("--init", model_folder, "--data", pictures, "--steps", "1"),
        "sample": ("--model", model_folder, "--prompt", "cat"),
    }
    out = tmp_path / "out.png"
    done = mdm_without("mlx", command, *asked[command], "--backend", "mlx", "--out", out)
    assert done.returncode == 1
    assert done.stderr == "mdm: mlx is not installed. Run: pip install 'mdm-apple[mlx]'\n"
    assert not out.exists()
