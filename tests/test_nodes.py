"""A run on two machines loses a process, a machine or the network, and ends as if it had not.

The machines are network namespaces (`network`); the store of torchrun is outside both, and each of
them is started as docs/scale.md says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from network import NODES, Network, ip, network
from small import trainable_model
from train_process import PATIENCE, arguments, finish, hashes, lines_logged, logged, wait_until

from mdm_apple.config.strict_json import to_json

pytestmark = pytest.mark.slow

STEPS, SAVE_EVERY = 200, 20
WITHIN = 60.0  # seconds from when all is back to the next step
DOWN = 60.0  # seconds without a network


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Network]:
    try:
        ip("netns", "add", f"mdm{os.getpid()}try")
        ip("netns", "delete", f"mdm{os.getpid()}try")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"two machines need iproute2 and the right to make network namespaces: {error}")
    with network(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(to_json(trainable_model()), encoding="utf-8")
    return path


def training(config: Path, pictures: Path, out: Path, steps: int) -> list[str]:
    more = ("--save-every", str(SAVE_EVERY), "--accumulate", "2", "--resume", "auto")
    return arguments(config, pictures, out, steps, *more)


@pytest.fixture(scope="module")
def undisturbed(config: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = finish(training(config, pictures, out, STEPS), launcher)
    assert done.returncode == 0, done.stderr
    return out


def last_save(out: Path) -> int:
    return json.loads((out / "training.json").read_text())["step"]


def seconds_until(reached: Callable[[], bool], what: str) -> float:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < PATIENCE, f"waited too long until {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def kill_worker(nodes: Network, agents: dict[str, subprocess.Popen[bytes]]) -> None:
    (worker,) = (pid for pid in nodes.pids("b") if pid != agents["b"].pid)
    os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("lost", ["worker", "node b", "node a", "network"])
def test_what_is_lost_comes_back_and_the_run_ends_bit_identical(
    nodes: Network,
    config: Path,
    pictures: Path,
    tmp_path: Path,
    undisturbed: Path,
    lost: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    asked = training(config, pictures, out, STEPS)
    agents = {node: nodes.torchrun(node, "2", asked) for node in NODES}
    assert wait_until(lambda: lines_logged(out) > 50, agents["a"])
    if lost == "network":
        nodes.link("b", up=False)
        time.sleep(DOWN)
        stood = lines_logged(out)
        nodes.link("b", up=True)
    elif lost == "worker":
        kill_worker(nodes, agents)
        stood = lines_logged(out)
    else:
        node = lost[-1]
        nodes.kill(node)
        time.sleep(5)
        stood = lines_logged(out)
        agents[node] = nodes.torchrun(node, "2", asked)
    assert stood < STEPS, "the run was over before; give it more steps"
    saved = last_save(out)

    def went_on() -> bool:
        assert all(agent.poll() in (None, 0) for agent in agents.values()), "an agent ended"
        return lines_logged(out) > stood

    seconds = seconds_until(went_on, "the run went on")
    for node in NODES:
        log = (tmp_path / f"{node}.log").read_text()
        assert agents[node].wait(timeout=PATIENCE) == 0, log
    with capsys.disabled():
        print(f"\n{lost}: at step {stood}, saved {saved}, went on after {seconds:.0f} s", end="")
    assert seconds <= WITHIN
    assert stood - saved <= SAVE_EVERY
    gone = "another process of this run has ended or cannot be reached"
    assert (gone in (tmp_path / "a.log").read_text()) == (lost in ("worker", "node b"))
    assert hashes(out) == hashes(undisturbed)
    assert logged(out) == logged(undisturbed)


def test_one_of_two_machines_goes_on_alone_and_is_rejoined_without_a_lost_step(
    nodes: Network,
    config: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, alone = tmp_path / "run", tmp_path / "alone"
    asked = training(config, pictures, out, 1_000_000)
    agents = {node: nodes.torchrun(node, "1:2", asked) for node in NODES}
    assert wait_until(lambda: lines_logged(out) > 50, agents["a"])
    nodes.kill("b")
    stood = lines_logged(out)
    gone = seconds_until(lambda: lines_logged(out) > stood, "one went on alone")
    agents["b"] = nodes.torchrun("b", "1:2", asked)
    seen = at_most = lines_logged(out)
    began, place = time.monotonic(), (out / "metrics.jsonl").stat().st_ino
    while True:  # the log is a new file when the run is resumed with both
        seen = lines_logged(out)
        if (out / "metrics.jsonl").stat().st_ino != place:
            break
        at_most = max(at_most, seen)
        assert time.monotonic() - began < PATIENCE, (tmp_path / "b.log").read_text()
        time.sleep(0.002)
    again = seconds_until(lambda: lines_logged(out) > at_most + 20, "both went on")
    for node in NODES:
        agents[node].terminate()
    for node in NODES:
        agents[node].wait(timeout=PATIENCE)
    steps = last_save(out)
    assert len(logged(out)) == steps  # the end of the agents saved as well
    with capsys.disabled():
        print(
            f"\n1:2: lost at step {stood}, alone after {gone:.0f} s, rejoined at {at_most} and "
            f"{at_most - seen} steps lost, went on after {again:.0f} s",
            end="",
        )
    assert gone <= WITHIN
    assert seen == at_most
    done = finish(training(config, pictures, alone, steps))
    assert done.returncode == 0, done.stderr
    one, other = logged(alone), logged(out)
    assert list(one) == list(other)
    assert max(abs(other[step] / one[step] - 1) for step in one) <= 1e-5
