"""The folder of a run: restored if the run fails, saved on Ctrl-C, resumed as the same run."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread

from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.storage.files import remove_empty
from mdm_apple.storage.model_folder import Training
from mdm_apple.training.boot import BootConfig
from mdm_apple.training.metrics import METRICS
from mdm_apple.training.settings import FREE_ON_RESUME, TrainConfig


@contextmanager
def as_it_was(out: Path, saved: Event) -> Generator[None]:
    """Make the folder of a run; if the run fails before its first save, restore `out`."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
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
            remove_empty(missing)
        raise


@contextmanager
def stop_on_interrupt() -> Generator[Event]:
    """Ctrl-C saves after the current step; a second Ctrl-C ends at once.

    Python gives signals to the main thread alone. A run on another thread is left as it is.
    """
    stop = Event()
    if current_thread() is not main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def refuse_changes(before: TrainConfig | BootConfig, asked: object, out: Path, anew: str) -> None:
    """Refuse to resume with settings that differ from `before`, except those that may change.

    anew: the end of the sentence, with what to do instead.
    """
    for field in dataclasses.fields(before):
        now, had = getattr(asked, field.name), getattr(before, field.name)
        if field.name not in FREE_ON_RESUME and now != had:
            raise ConfigError(
                f"{field.name}: the run in {out} was started with {had}, now it is {now}; resume "
                f"with the same settings, or {anew}."
            )


def steps_done(state: Training, steps: int, out: Path, anew: str) -> int:
    """Steps that the saved run has done; refuses a damaged count or one beyond `steps`."""
    step = state.meta.get("step")
    if type(step) is not int or step < 0:
        raise MdmError(f"{out}: training.json is damaged; {anew}.")
    if step > steps:
        raise ConfigError(
            f"steps: the run in {out} is already at step {step}, so it cannot end at "
            f"{steps}; ask for more."
        )
    return step
