"""Runs `mdm` commands in forked processes of one server, which imported the heavy packages once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: minus the number of the signal that killed it."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandServer:
    """See forked_commands.py."""

    process: subprocess.Popen[str]

    def ask(
        self,
        command: Sequence[str | Path],
        folder: Path,
        file_bytes: int | None = None,
        signal: tuple[int, float] | None = None,
    ) -> Ended:
        """Run a command in a folder, to its end.

        Args:
            file_bytes: the largest file that the system lets it write.
            signal: a number, and the seconds after the start at which the command gets it.
        """
        self.start(command, folder, file_bytes, signal)
        return self.answer()

    def start(
        self,
        command: Sequence[str | Path],
        folder: Path,
        file_bytes: int | None = None,
        signal: tuple[int, float] | None = None,
    ) -> None:
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        request = {
            "arguments": [str(a) for a in command],
            "folder": str(folder),
            "scratch": str(scratch),
            "file_bytes": file_bytes,
            "signal": signal,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Ended:
        """How the command ended that was started last."""
        assert self.process.stdout is not None
        return Ended(**json.loads(self.process.stdout.readline()))


@contextmanager
def command_server() -> Generator[CommandServer]:
    program = Path(__file__).with_name("forked_commands.py")
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what packages say while they are imported
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield CommandServer(process)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
