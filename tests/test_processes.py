"""Training as people run it: stopped with Ctrl-C, or spread over processes."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small import trainable_model
from train_process import (
    MDM,
    PATIENCE,
    arguments,
    finish,
    hashes,
    lines_logged,
    logged,
    resuming,
    started,
    wait_until,
)

from mdm_apple.config.strict_json import to_json
from mdm_apple.data.batches import BatchPlan
from mdm_apple.storage.atomic_folder import finish_save
from mdm_apple.training.launch import RECOVERS, launch_remarks


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(to_json(trainable_model()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_a_stopped_run_is_saved_and_resumed_to_where_an_undisturbed_run_ends(
    config_file: Path, pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    # the number of steps may change between the parts of a run
    asked = arguments(config_file, pictures, out, 100_000, "--save-every", "100000")
    with started(asked) as process:
        assert wait_until(lambda: lines_logged(out) >= 2, process)
        process.send_signal(number)
        assert process.wait(timeout=120) == 75
        assert process.stderr is not None
        said = process.stderr.read()
    done = json.loads((out / "training.json").read_text())["step"]
    assert f"mdm: stopped after step {done} and saved; go on with --resume." in said
    assert "Traceback" not in said
    assert list(logged(out)) == list(range(done))

    more = str(done + 2)
    asked[asked.index("100000")] = more
    resumed = finish(resuming([*asked[:-1], "1000"]))
    assert resumed.returncode == 0, resumed.stderr
    straight = finish(arguments(config_file, pictures, whole, done + 2, "--save-every", "1000"))
    assert straight.returncode == 0, straight.stderr
    assert hashes(out) == hashes(whole)
    assert logged(out) == logged(whole)
    assert list(logged(out)) == list(range(done + 2))


def test_a_bad_picture_of_another_process_costs_no_step_before_it(
    config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    data, out = Path(shutil.copytree(pictures, tmp_path / "data")), tmp_path / "out"
    names = sorted(path.name for path in data.glob("*.png"))
    plan = BatchPlan(len(names), 4, 5)
    for bad in range(len(names)):  # one that the second process alone is the first to read
        rows = [plan.indices(step).tolist() for step in range(8)]
        at = next(step for step, row in enumerate(rows) if bad in row)
        if at >= 1 and rows[at].index(bad) >= 2:
            break
    else:
        raise AssertionError("there is such a picture")
    (data / names[bad]).write_bytes((data / names[bad]).read_bytes()[:-30])
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    more = ("--validation-share", "0", "--save-every", "1000")
    done = finish(arguments(config_file, data, out, 8, *more), launcher)
    assert done.returncode != 0
    assert f"{names[bad]}: cannot be read" in done.stderr
    assert json.loads((out / "training.json").read_text())["step"] == at


def test_processes_that_find_different_saves_refuse_to_train(
    config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    """As on machines that share no folder, one goes on and the other begins."""
    asked = arguments(config_file, pictures, tmp_path / "out0", 2, "--resume", "auto")
    assert finish(asked).returncode == 0
    each = shlex.join([sys.executable, str(MDM), *asked])
    each = each.replace(str(tmp_path / "out0"), str(tmp_path / "out") + "$RANK", 1)
    each = each.replace("--steps 2", "--steps 4", 1)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *launcher, "--no-python", "sh", "-c", f"exec {each}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "out0: the processes of this run found different saves there" in done.stderr
    assert not (tmp_path / "out1").exists()
    assert list(logged(tmp_path / "out0")) == [0, 1]


def test_torchrun_on_several_machines_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv(RECOVERS, raising=False)
    for machines, remarks in (("1", 0), ("2", 1)):
        monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
        assert len(launch_remarks()) == remarks
    assert f"set {RECOVERS}=1 where torchrun is started" in launch_remarks()[0]
    monkeypatch.setenv("RANK", "3")  # one speaks for all
    assert launch_remarks() == []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(RECOVERS, "1")
    assert launch_remarks() == []


def test_processes_that_cannot_share_a_batch_are_refused_in_one_sentence(
    config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = arguments(config_file, pictures, tmp_path / "out", 1, "--accumulate", "5")
    done = finish(asked)
    assert done.returncode == 1
    assert done.stderr.startswith("mdm: accumulate: expected at most batch_size (4) parts")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_processes_that_resume_together_wait_for_each_other(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    waiting = threading.Thread(target=finish_save, args=[tmp_path])
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    os.close(descriptor)
    waiting.join(5)
    assert not waiting.is_alive()
