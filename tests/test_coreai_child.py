"""The process that runs Core AI packages: how it ends, what it leaves, what it may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coreai_wheels import needs_coreai
from small_assets import LargeSum, Products, TwoSums, save_asset

from mdm_apple.conversion.coreai import child_process
from mdm_apple.conversion.coreai import runtime as runtime_module
from mdm_apple.conversion.coreai.child_process import Child
from mdm_apple.conversion.coreai.runtime import AppleRuntime
from mdm_apple.conversion.execute import ExecutionError

pytest_plugins = ["temporary_folder"]
pytestmark = needs_coreai
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

X = {"x": np.ones(4, np.float32)}
LARGE = 1 << 15  # its square takes 4 GB in fp32


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("assets") / "sums.aimodel"
    return save_asset(path, TwoSums(), torch.zeros(4), ("a", "b"))


@pytest.fixture
def runtime() -> Iterator[AppleRuntime]:
    apple = AppleRuntime()
    yield apple
    apple.close()


def soon(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    if sys.platform != "linux":
        return True
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


# --- what it leaves -------------------------------------------------------------------------------

PARENT = """
import sys
from pathlib import Path
import numpy as np
from mdm_apple.conversion.coreai.runtime import AppleRuntime

runtime, side = AppleRuntime(), int(sys.argv[2])
run = runtime(Path(sys.argv[1]), None, "all")
print(runtime.process, flush=True)
while side:
    run({"x": np.ones((side, side), np.float32)})
sys.stdin.read()
"""


@pytest.mark.bundle
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("side", [0, 2000])
def test_a_parent_that_is_killed_leaves_neither_child_nor_files(
    sums: Path, tmp_path: Path, temporary: Path, side: int, number: signal.Signals
) -> None:
    """side: of the matrices that the child multiplies at that moment; 0: it waits."""
    path = sums
    if side:
        path = save_asset(tmp_path / "slow.aimodel", Products(), torch.zeros(side, side))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path), str(side)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert [p.name[:11] for p in temporary.iterdir()] == ["mdm-coreai-"]
    if side:
        time.sleep(0.5)
    if number == signal.SIGTERM:  # as when a terminal or a system ends the whole group
        os.killpg(parent.pid, number)
    else:
        parent.kill()
    parent.communicate()
    assert soon(lambda: not is_alive(child))
    assert list(temporary.iterdir()) == []


@pytest.mark.bundle
def test_a_child_that_dies_leaves_no_file(
    sums: Path, temporary: Path, runtime: AppleRuntime
) -> None:
    run = runtime(sums, None, "all")
    (folder,) = temporary.iterdir()
    (folder / "plain file").write_bytes(b"1")
    assert runtime.process is not None
    os.kill(runtime.process, signal.SIGKILL)
    with pytest.raises(ExecutionError, match=r"^sums\.aimodel: .* was killed \(signal 9\)"):
        run(X)
    assert list(temporary.iterdir()) == []
    assert run(X)["a"].tolist() == [2, 2, 2, 2]
    runtime.close()
    assert list(temporary.iterdir()) == []


@pytest.mark.bundle
@on_linux
def test_a_child_that_dies_leaves_no_core_file(sums: Path, runtime: AppleRuntime) -> None:
    runtime(sums, None, "all")
    limits = Path(f"/proc/{runtime.process}/limits").read_text().splitlines()
    (row,) = (line.split() for line in limits if line.startswith("Max core file size"))
    assert row[4:6] == ["0", "0"]


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.bundle
def test_any_exception_is_a_refusal_and_the_child_lives(sums: Path) -> None:
    child = Child()
    try:
        for request in ({"run": 9}, {"run": "x"}, {"path": str(sums)}, {}):
            with pytest.raises(ExecutionError, match=r"^sums\.aimodel: Apple's runtime refused"):
                child.ask(sums, request, {}, 60)
        found, _ = child.ask(sums, {"path": str(sums), "function": "main"}, {}, 60)
        assert found == {"loaded": 0}
    finally:
        child.end()


# --- what it may use ------------------------------------------------------------------------------


@pytest.mark.bundle
def test_silence_is_one_sentence(
    sums: Path, runtime: AppleRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runtime(sums, None, "all")
    assert runtime.process is not None
    os.kill(runtime.process, signal.SIGSTOP)
    monkeypatch.setattr(child_process, "RUN_SECONDS", 1.0)
    monkeypatch.setattr(child_process, "READ_SECONDS", 1.0)
    sentence = r"^sums\.aimodel: Apple's runtime gave no answer within 1 seconds\.$"
    with pytest.raises(ExecutionError, match=sentence):
        run(X)
    assert runtime.process is None
    monkeypatch.undo()
    assert run(X)["b"].tolist() == [2, 2, 2, 2]
    os.kill(runtime.process, signal.SIGSTOP)
    monkeypatch.setattr(child_process, "READ_SECONDS", 1.0)
    with pytest.raises(ExecutionError, match=sentence):
        runtime.census(sums)


@pytest.mark.bundle
@on_linux
def test_memory_has_a_limit(
    tmp_path: Path, runtime: AppleRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert child_process.LEAST_MEMORY <= child_process.memory_limit() < 1 << 44
    monkeypatch.setattr(child_process, "memory_limit", lambda: 2 << 30)
    for width in (1 << 10, LARGE):
        path = save_asset(tmp_path / f"sum-{width}.aimodel", LargeSum(), torch.zeros(1, width))
        x = {"x": np.ones((1, width), np.float32)}
        if width < LARGE:
            assert runtime(path, None, "all")(x)["y"][0] == 2 * width
            continue
        with pytest.raises(ExecutionError, match=r"^sum-32768\.aimodel: [^\n]* 2 GB, [^\n]*\.$"):
            runtime(path, None, "all")(x)


@pytest.mark.slow
@on_linux
def test_ten_thousand_calls_keep_to_their_memory(
    tmp_path: Path, runtime: AppleRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime keeps all outputs, here 328 MB; a child is renewed after 64 MB of them."""
    path = save_asset(tmp_path / "sums.aimodel", TwoSums(), torch.zeros(4096), ("a", "b"))
    monkeypatch.setattr(runtime_module, "MOST_BYTES", 64 << 20)
    run, x = runtime(path, None, "all"), {"x": np.ones(4096, np.float32)}
    run(x)
    parent, child = resident(os.getpid()), resident(runtime.process)
    parents, children = [parent], [child]
    for k in range(10_000):
        assert run(x)["a"][0] == 2
        if k % 100 == 0:
            parents.append(resident(os.getpid()))
            children.append(resident(runtime.process))
    assert runtime.children >= 5
    assert max(abs(now - parent) for now in parents) < 20 << 20
    assert max(children) - child < 96 << 20  # 64 MB of numbers, and what the runtime adds to each
    # The twin: a parent that kept them would be seen.
    kept = [run(x) for _ in range(1000)]
    assert resident(os.getpid()) - parent > 20 << 20
    assert len(kept) == 1000


def resident(process: int | None) -> int:
    """Bytes that a process has in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
