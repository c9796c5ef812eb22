"""Runs `mdm` commands as processes of their own, fast: heavy packages are imported once.

Reads one request per line, JSON: arguments, working folder, a limit for the size of files, and a
signal with the seconds after which the command gets it.
Answers one line each, with exit code and what was printed. Every command runs in a forked child of
its own, so tracebacks, exit codes and what is left on disk are the real ones.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import selectors
import sys
import tempfile
import time
import traceback
from typing import Any, NoReturn

HEAVY = (
    "jsonschema",
    "sentencepiece",
    "torch._dynamo",  # torch imports it late, and then makes a cache folder
    "mdm_apple.torch.open_run",
    "mdm_apple.torch.load",
    "mdm_apple.conversion.convert",
    "mdm_apple.conversion.inspect.inspect",
    "mdm_apple.conversion.compress.palettize",
    "mdm_apple.conversion.run.runtime",
    "mdm_apple.conversion.verify.verify",
)


def main() -> None:
    if sys.platform == "linux":  # elsewhere forked frameworks may hang, and each child starts anew
        from mdm_apple.cli import COMMANDS

        for name in (*HEAVY, *(f"mdm_apple.cli.{c.replace('-', '_')}_command" for c in COMMANDS)):
            importlib.import_module(name)
        from mdm_apple.conversion.coreml import quiet_coremltools

        with quiet_coremltools():  # imports it
            pass
    gc.collect()
    gc.freeze()  # else each child would copy the memory of all that is imported
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        out, err = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            become(request, out[1], err[1])
        os.close(out[1])
        os.close(err[1])
        printed = drain(out[0], err[0], child=child, due=request["signal"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer = {"code": code, "stdout": printed[out[0]], "stderr": printed[err[0]]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def become(request: dict[str, Any], out: int, err: int) -> NoReturn:
    """Be the command, from here to the end of the process."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["folder"])
    os.environ["TMPDIR"] = request["scratch"]
    tempfile.tempdir = None  # it was asked for while importing
    limit = request["file_bytes"]
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if sys.platform != "linux":
        run = "from mdm_apple.cli import main; main()"
        os.execv(sys.executable, [sys.executable, "-c", run, *request["arguments"]])
    sys.argv = ["mdm", *request["arguments"]]
    from mdm_apple.cli import main as command

    code = 0
    try:
        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking the frameworks apart would need a second


def drain(*pipes: int, child: int, due: tuple[int, float] | None) -> dict[int, str]:
    """Everything written to the pipes, until all are closed; a due signal is sent on the way."""
    started = time.monotonic()
    received = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as waiting:
        for pipe in pipes:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map():
            left = None if due is None else max(0.0, started + due[1] - time.monotonic())
            ready = waiting.select(left)
            if due is not None and not ready:
                os.kill(child, due[0])
                due = None
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                received[key.fd] += data
                if not data:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
    return {pipe: data.decode("utf-8", "replace") for pipe, data in received.items()}


if __name__ == "__main__":
    main()
