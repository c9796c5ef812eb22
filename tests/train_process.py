"""`mdm train` as a process of its own, to be interrupted, killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdm_apple.training.metrics import METRICS

MDM = Path(sys.executable).with_name("mdm")
PATIENCE = 300.0  # seconds; the machine may be busy


def arguments(config: Path, data: str | Path, out: Path, steps: int, *more: str) -> list[str]:
    return [
        *("train", "--config", str(config), "--data", str(data), "--out", str(out)),
        *("--steps", str(steps), "--batch-size", "4", "--warmup-steps", "2", "--seed", "5"),
        *("--log-every", "1", "--backend", "torch", "--quiet"),
        *more,
    ]


def resuming(asked: list[str]) -> list[str]:
    """The same command with --resume, which brings its own configuration."""
    place = asked.index("--config")
    return [*asked[:place], *asked[place + 2 :], "--resume"]


def finish(asked: list[str], launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(MDM), *asked],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextmanager
def started(asked: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A running command; it never outlives the block."""
    process = subprocess.Popen(
        [sys.executable, str(MDM), *asked],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[Any], pause: float = 0.01
) -> bool:
    """Whether the condition came true before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        if process.poll() is not None:
            return condition()
        time.sleep(pause)
    return True


def logged(folder: Path, kind: str = "loss") -> dict[int, float]:
    """Losses by step; refuses steps that appear twice."""
    lines = (folder / METRICS).read_text().splitlines()
    entries = [entry for line in lines if kind in (entry := json.loads(line))]
    losses = {entry["step"]: entry[kind] for entry in entries}
    assert len(losses) == len(entries)
    return losses


def lines_logged(folder: Path) -> int:
    path = folder / METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def hashes(folder: Path) -> dict[str, object]:
    return json.loads((folder / "hashes.json").read_text())
