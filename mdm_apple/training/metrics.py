"""metrics.jsonl: one line per logged step; a resumed run continues from its last save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from mdm_apple.errors import require, system_reason
from mdm_apple.storage.files import FileError, atomic_file
from mdm_apple.training.learner import StepMetrics

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"  # folder of event files


def open_log(folder: Path, start: int, tensorboard: bool) -> MetricsLog:
    """The log of a run that begins at step `start`; with event files for TensorBoard if asked."""
    writer = None
    if tensorboard:
        events = require("tensorboardX")
        writer = events.SummaryWriter(str(folder / EVENTS), purge_step=start, flush_secs=5)
    return MetricsLog(folder / METRICS, start, writer)


class MetricsLog:
    """Appends to metrics.jsonl; a resumed run first drops lines at or after its first step."""

    def __init__(self, path: Path, start: int, events: Any = None) -> None:
        """Raises FileError if the file cannot be read or written.

        events: a `SummaryWriter` that gets the same numbers.
        """
        self._path, self._events = path, events
        kept = [line for line in _lines(path) if _is_before(line, start)] if start else []
        with atomic_file(path) as file:
            file.write(b"".join(line + b"\n" for line in kept))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, step: int, metrics: StepMetrics, lr: float, images_per_second: float) -> None:
        self._append(
            {
                "step": step,
                "loss": metrics.loss,
                "level_losses": metrics.level_losses,
                "grad_norm": metrics.grad_norm,
                "lr": lr,
                "images_per_second": round(images_per_second, 2),
                **metrics.extra,
            }
        )

    def write_validation(self, step: int, loss: float) -> None:
        self._append({"step": step, "validation_loss": loss})

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written; {system_reason(error)}") from None
        if self._events is not None:
            step = entry["step"]
            for name, value in _scalars(entry).items():
                self._events.add_scalar(name, value, step)


def _scalars(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of an entry by name; each level's number has its own name, highest first."""
    out: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, (list, tuple)):
            out |= {f"{name}/{level}": float(v) for level, v in enumerate(value)}
        elif name != "step":
            out[name] = float(value)
    return out


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"{path}: cannot be read; {system_reason(error)}") from None


def _is_before(line: bytes, start: int) -> bool:
    """Whether this is a complete line of a step before `start`; a killed run leaves half a line."""
    try:
        return json.loads(line)["step"] < start
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
