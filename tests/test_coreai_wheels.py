"""On which systems the tests of Core AI must run, and on which they are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from coreai_wheels import has_wheels
from packaging.tags import Tag, cpython_tags, mac_platforms

TESTS = Path(__file__).parent
NEEDY = """
from coreai_wheels import needs_coreai

@needs_coreai
def test_it():
    import coreai
"""


def mac(version: tuple[int, int], processor: str = "arm64") -> list[str]:
    return list(mac_platforms(version, processor))


def linux(glibc: int, processor: str = "x86_64") -> list[str]:
    return [f"manylinux_2_{minor}_{processor}" for minor in range(glibc, 16, -1)]


def tags(platforms: Sequence[str], minor: int = 11) -> Iterator[Tag]:
    return cpython_tags((3, minor), platforms=platforms)


@pytest.mark.parametrize(
    ("platforms", "minor", "there"),
    [
        (linux(34), 11, True),
        (linux(39), 14, True),
        (linux(39), 10, False),
        (linux(39), 15, False),
        (linux(31), 11, False),
        (linux(39, "aarch64"), 11, False),
        (mac((26, 0)), 12, True),
        (mac((27, 1)), 11, True),
        (mac((15, 5)), 11, False),
        (mac((26, 0), "x86_64"), 11, False),
        (["win_amd64"], 11, False),
    ],
)
def test_wheels_are_there_for_these_systems(platforms: list[str], minor: int, there: bool) -> None:
    assert has_wheels(tags(platforms, minor)) == there


@pytest.mark.parametrize(
    ("ci", "wheels", "outcome"),
    [("true", True, "1 failed"), ("true", False, "1 skipped"), ("", True, "1 skipped")],
)
def test_ci_demands_the_packages_only_where_there_are_wheels(
    tmp_path: Path, ci: str, wheels: bool, outcome: str
) -> None:
    """In a process where the packages cannot be imported, on a system with wheels or without."""
    (tmp_path / "test_needy.py").write_text(NEEDY)
    system = "manylinux_2_34_x86_64" if wheels else "macosx_15_0_arm64"
    (tmp_path / "conftest.py").write_text(
        "import sys, packaging.tags\n"
        "sys.modules['coreai'] = sys.modules['coreai_torch'] = None\n"
        "import mdm_apple.errors\n"
        "mdm_apple.errors.has_coreai = lambda: False\n"
        "tag = packaging.tags.Tag('cp311', 'cp311', " + repr(system) + ")\n"
        "packaging.tags.sys_tags = lambda: iter([tag])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "."],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout, done.stdout


def test_setup_hides_no_error_of_pip() -> None:
    """Only the question whether there are wheels decides what is skipped."""
    (rule,) = (TESTS.parent / "Makefile").read_text().split("\n$(STAMP): ")[1:]
    rule = rule.split("\n\n")[0]
    assert "tests/coreai_wheels.py" in rule
    assert "||" not in rule
