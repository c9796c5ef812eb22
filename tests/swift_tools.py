"""The Swift package, built once per session; tests of it are skipped where there is no Swift.

Under CI=true they fail instead: a green run without Swift must be impossible there.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FUZZ_MEMORY = 2 << 30
ROOT = Path(__file__).parents[1]


def require_swift() -> str:
    """Path of the compiler's driver."""
    swift = shutil.which("swift")
    if swift is None:
        reason = "swift is not on the PATH; install Swift 6 or later"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return swift


def build(product: str) -> Path:
    """The program of that name, in release mode."""
    command = [require_swift(), "build", "-c", "release", "--package-path", str(ROOT)]
    done = subprocess.run(
        [*command, "--product", product], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".build" / "release" / product


class Dump:
    """Runs mdm-dump."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, *words: object, given: object = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.program), *map(str, words)],
            input=json.dumps(given).encode(),
            capture_output=True,
            check=False,
            timeout=600,
        )

    def __call__(self, *words: object, given: object = None) -> bytes:
        done = self.run(*words, given=given)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def json(self, *words: object, given: object = None) -> Any:
        return json.loads(self(*words, given=given))

    def fuzz(self, kind: str, victim: Path, count: int) -> None:
        """Damage a file so often, from a new seed; a crash, a hang or too much memory fails."""
        seed = random.SystemRandom().randrange(2**32)
        count *= int(os.environ.get("MDM_FUZZ", "1"))

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (FUZZ_MEMORY, FUZZ_MEMORY))

        words = [str(self.program), "fuzz", kind, str(seed), str(count), str(victim)]
        done = subprocess.run(
            words, capture_output=True, check=False, preexec_fn=limit, timeout=300 + count // 20
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode} {done.stderr.decode()}"
        assert b'"refused"' in done.stdout
