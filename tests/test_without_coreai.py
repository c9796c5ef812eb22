"""Without Apple's packages for Core AI, its commands say so in one sentence.

`make without-coreai` runs this file and those of conversion with the packages hidden.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HIDING = Path(__file__).parent / "without_coreai"
SENTENCE = "pip install 'mdm-apple[coreai]', or leave out --format coreai."


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HIDING), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "mdm_apple", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.bundle
def test_converting_refuses_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "tiny.bundle"
    done = run("convert", "--preset", "tiny", "--format", "coreai", "--out", str(out))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith(SENTENCE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # make without-coreai runs what the other commands have
def test_other_commands_do_not_need_them(tmp_path: Path) -> None:
    out = tmp_path / "tiny.bundle"
    made = run("convert", "--preset", "tiny", "--layout", "monolith", "--quiet", "--out", str(out))
    assert made.returncode == 0, made.stderr
    proven = run("verify", str(out), "--quiet")
    assert proven.returncode == 0, proven.stderr


@pytest.mark.bundle
def test_the_packages_are_really_hidden() -> None:
    path = os.pathsep.join([str(HIDING), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", "import coreai"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
