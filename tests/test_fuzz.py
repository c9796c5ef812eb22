"""Each fuzzer for a minute, from the kept inputs and from what earlier runs found."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
NAMES = sorted(path.stem for path in (FUZZ / "readers").glob("*.py"))
SECONDS = 60


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed; pip install -c constraints.txt -e '.[fuzz]' (Linux x86-64)",
)
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_finds_nothing_that_breaks_the_contract(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZ / "run.py"), name, "--seconds", str(SECONDS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
