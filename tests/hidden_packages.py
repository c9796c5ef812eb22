"""mdm in a process for which some packages are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HIDING = Path(__file__).parent / "without_coreai"


def hiding_path() -> str:
    """PYTHONPATH of such a process."""
    return os.pathsep.join([str(HIDING), os.environ.get("PYTHONPATH", "")])


def run_without(hidden: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of mdm. hidden: names of packages; None: those of Core AI."""
    names = {} if hidden is None else {"MDM_HIDDEN": hidden}
    return subprocess.run(
        [sys.executable, "-m", "mdm_apple", *arguments],
        env={**os.environ, "PYTHONPATH": hiding_path()} | names,
        capture_output=True,
        text=True,
        check=False,
    )
