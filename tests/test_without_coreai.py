"""Without Apple's packages for Core AI, its commands say so in one sentence.

`make without-coreai` runs this file and those of conversion with the packages hidden.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from coreai_wheels import needs_coreai

HIDING = Path(__file__).parent / "without_coreai"
SENTENCE = "pip install 'mdm-apple[coreai]', or leave out --format coreai."


def run(*arguments: str, hidden: str | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HIDING), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "mdm_apple", *arguments],
        env={**os.environ, "PYTHONPATH": path} | ({"MDM_HIDDEN": hidden} if hidden else {}),
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


@needs_coreai
@pytest.mark.bundle
def test_core_ai_needs_nothing_of_core_ml(tmp_path: Path) -> None:
    """The extra coreai alone converts, verifies and palettizes."""
    out = tmp_path / "tiny.bundle"
    for arguments in (
        ("convert", "--preset", "tiny", "--layout", "monolith", "--format", "coreai"),
        ("verify", str(out), "--prompts", "1"),
        ("palettize", str(out), "--bits", "6"),
    ):
        place = {"convert": out, "palettize": tmp_path / "six.bundle"}.get(arguments[0])
        added = () if place is None else ("--out", str(place))
        done = run(*arguments, *added, "--quiet", hidden="coremltools")
        assert done.returncode == 0, done.stderr
    assert run("inspect", str(out), hidden="coremltools").returncode == 0


@pytest.mark.bundle
@pytest.mark.parametrize("command", ["verify", "inspect", "palettize", "sample"])
def test_a_bundle_is_refused_before_it_is_opened(tmp_path: Path, command: str) -> None:
    bundle = tmp_path / "tiny.bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text('{"format": "coreai"}')
    arguments = {
        "palettize": ("palettize", str(bundle), "--bits", "6", "--out", str(tmp_path / "out")),
        "sample": ("sample", "a cat", "--model", str(bundle), "--out", str(tmp_path / "cat.png")),
    }.get(command, (command, str(bundle)))
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("mdm: coreai: needs Python 3.11"), done.stderr
    assert "pip install 'mdm-apple[coreai]'" in done.stderr


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
