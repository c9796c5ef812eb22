"""The folder of a run: restored if the run fails, saved on Ctrl-C, resumed as the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.storage.atomic_folder import HASHES, SAVING
from mdm_apple.storage.file_lock import try_lock
from mdm_apple.storage.files import is_system_file, partial_name, remove_empty
from mdm_apple.training.boot import BootConfig
from mdm_apple.training.learner import Learner
from mdm_apple.training.loop import SAMPLES
from mdm_apple.training.metrics import EVENTS, METRICS
from mdm_apple.training.picture_record import PICTURES
from mdm_apple.training.settings import FREE_ON_RESUME, TrainConfig

TOGETHER = 1.0  # seconds
ENDING = (signal.SIGINT, signal.SIGTERM)
LOCK = ".lock"  # in the folder of a run, while the run is at work
# what a run may have written before its first save
EARLY = frozenset((LOCK, METRICS, EVENTS, SAMPLES, SAVING, PICTURES))


@contextmanager
def as_it_was(out: Path, saved: Event, begun_from: bytes | None) -> Generator[None]:
    """Make the folder of a run; if the run fails before its first save, restore `out`.

    Args:
        begun_from: `last_save` from before the run read its state. Raises MdmError if another run
            has saved since.
    """
    missing = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    metrics = out / METRICS
    try:
        with _owned(out):
            if last_save(out) != begun_from:
                raise MdmError(
                    f"{out}: another run has saved there since this one began; choose another "
                    "--out, or go on with --resume."
                )
            before = metrics.read_bytes() if metrics.is_file() else None
            try:
                yield
            except BaseException:
                if not saved.is_set():
                    metrics.unlink(missing_ok=True)
                    if before is not None:
                        metrics.write_bytes(before)
                raise
    finally:
        if not saved.is_set():
            remove_empty(missing)


def last_save(out: Path) -> bytes | None:
    """What tells the last save in a folder from others; None if there is none."""
    place = out / HASHES
    return place.read_bytes() if place.is_file() else None


def refuse_parted(out: Path, learner: Learner[Any], begun_from: bytes | None, step: int) -> None:
    """Refuse processes that begin from different saves: each would train a model of its own.

    It happens where machines see different folders, or one process was still saving while another
    began. Every process calls this.
    """
    digest = hashlib.sha256(b"%d %b" % (step, begun_from or b"")).digest()
    if not learner.same_everywhere(int.from_bytes(digest[:4], "big") >> 1):
        raise MdmError(
            f"{out}: the processes of this run found different saves there; give a folder that "
            "all machines share, and start them again."
        )


@contextmanager
def _owned(out: Path) -> Generator[None]:
    """Own the folder of a run; the system lets go of it however the process ends.

    Two runs in one folder would train into each other, so the second is refused.
    """
    place = out / LOCK
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # the owner before removes the file as it goes, and then this lock would be on no file
        if not try_lock(descriptor) or not place.exists():
            raise _running(out)
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def refuse_running(out: Path) -> None:
    """Refuse a folder that a run owns, before anything is loaded."""
    try:
        descriptor = os.open(out / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        if not try_lock(descriptor):
            raise _running(out)
    finally:
        os.close(descriptor)


def killed_unsaved(out: Path) -> bool:
    """Whether a folder holds only what a run leaves that was killed before its first save.

    The lock shows it: a run that ends in any other way removes it. Such a folder counts as empty.
    """
    if not (out / LOCK).is_file():
        return False
    names = [item.name for item in out.iterdir() if not is_system_file(item.name)]
    return all(name in EARLY or partial_name(name) in EARLY for name in names)


def _running(out: Path) -> MdmError:
    return MdmError(f"{out}: another run is at work there; choose another --out, or wait for it.")


@contextmanager
def stop_on_interrupt() -> Generator[Event]:
    """Ctrl-C, SIGTERM and SIGUSR1 save after the current step; a later one of ENDING ends at once.

    What comes within TOGETHER of the first is taken for the same wish: torchrun and Slurm send
    SIGTERM twice. Python gives signals to the main thread alone. A run on another thread is left as
    it is.
    """
    stop = Event()
    if current_thread() is not main_thread():
        yield stop
        return

    first = 0.0

    def ask(number: int, frame: object) -> None:
        nonlocal first
        if not stop.is_set():
            first = time.monotonic()
            stop.set()
        elif number in ENDING and time.monotonic() - first > TOGETHER:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (*ENDING, signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def steps_done(saved: Mapping[str, object], steps: int, out: Path, anew: str) -> int:
    """Steps that the saved run has done; refuses a damaged count or one beyond `steps`."""
    step = saved.get("step")
    if type(step) is not int or step < 0:
        raise MdmError(f"{out}: training.json is damaged; {anew}.")
    if step > steps:
        raise ConfigError(
            f"steps: the run in {out} is already at step {step}, so it cannot end at "
            f"{steps}; ask for more."
        )
    return step
