"""The folder of a run that is under way: left as it was when the run fails, saved on Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from mdm_apple.files import remove_empty
from mdm_apple.training import METRICS


@contextmanager
def as_it_was(out: Path, saved: Event) -> Generator[None]:
    """Make the folder of a run; one that fails before it saved leaves `out` as it found it."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    metrics = out / METRICS
    before = metrics.read_bytes() if metrics.is_file() else None
    try:
        yield
    except BaseException:
        if not saved.is_set():
            metrics.unlink(missing_ok=True)
            if before is not None:
                metrics.write_bytes(before)
            remove_empty(made)
        raise


@contextmanager
def stop_on_interrupt() -> Generator[Event]:
    """Ctrl-C saves after the current step; a second one ends at once."""
    stop = Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
