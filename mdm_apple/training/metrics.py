"""metrics.jsonl: a line per logged step; a resumed run takes up where its last save left."""

from __future__ import annotations

import json
from pathlib import Path

from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError, atomic_file
from mdm_apple.training.learner import StepMetrics

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends to metrics.jsonl; a resumed run first drops lines at or after its first step."""

    def __init__(self, path: Path, start: int) -> None:
        """Raises FileError where the file cannot be read or written."""
        self._path = path
        kept = [line for line in _lines(path) if _is_before(line, start)] if start else []
        with atomic_file(path) as file:
            file.write(b"".join(line + b"\n" for line in kept))

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

    def _append(self, entry: dict[str, object]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written; {system_reason(error)}") from None


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"{path}: cannot be read; {system_reason(error)}") from None


def _is_before(line: bytes, start: int) -> bool:
    """Whether it is a whole line of a step before `start`; a killed run leaves half a line."""
    try:
        return json.loads(line)["step"] < start
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
