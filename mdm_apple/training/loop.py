"""The training loop of both backends: schedule, metrics, checkpoints, validation, sample grids.

Enters: a `Stepper` (torch or MLX), batches, a folder. Leaves: a model folder that can be sampled,
converted, and resumed bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.data.batches import Batch
from mdm_apple.errors import ConfigError, MdmError, system_reason
from mdm_apple.sampling.generate import Runtime
from mdm_apple.storage.files import FileError, atomic_file

METRICS = "metrics.jsonl"
SAMPLES = "samples"
# what may differ between an interrupted run and the one that resumes it
FREE_ON_RESUME = {"steps", "save_every", "log_every", "validate_every", "sample_every"}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Batch sizes count pictures over all processes and accumulation steps."""

    steps: int
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-4
    embedding_lr_scale: float = 1.0  # learning rate of token embeddings over the others'
    warmup_steps: int = 100
    decay_share: float = 0.0  # share of the run, at its end, over which lr falls to zero (cosine)
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 2.0  # global gradient norm
    ema_decay: float | None = 0.9999  # None: no averaged weights
    ema_ramp: bool = True  # smaller decay at first, so that a short run shows in the average
    ema_warmup_steps: int = 0  # updates during which the average just follows
    caption_dropout: float = 0.1  # share of captions replaced by the empty one, for guidance
    white_headroom: float = 0.0  # pure white is trained as 1 + this, so that clipping cleans it
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False  # recompute activations instead of keeping them
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    validate_every: int = 500
    sample_every: int = 0  # 0: none
    validation_share: float = 0.0  # share of the pictures held out

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "batch_size",
            "accumulate",
            "lr",
            "clip_norm",
            "save_every",
            "log_every",
        )
        for name in ("lr", "embedding_lr_scale", "weight_decay", "clip_norm", "white_headroom"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name}: expected a finite number of 0 or more, got {getattr(self, name)}."
                )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected more than 0, got {getattr(self, name)}.")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size: expected a multiple of accumulate ({self.accumulate}), "
                f"got {self.batch_size}."
            )
        for name in ("decay_share", "caption_dropout", "beta1", "beta2", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 0 up to but not 1, got {getattr(self, name)}.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: expected 0 up to but not 1, got {self.ema_decay}.")


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (counted from 0): linear warm-up, flat, then a cosine to zero."""
    rate = config.lr * min(1.0, max(1, step) / max(1, config.warmup_steps))
    start = config.steps * (1 - config.decay_share)
    if config.decay_share and step > start:
        progress = (step - start) / max(1.0, config.steps - start)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return rate


def ema_decay_at(config: TrainConfig, step: int) -> float:
    """Decay of the average at update `step` (from 0)."""
    if config.ema_decay is None or step < config.ema_warmup_steps:
        return 0.0
    return min(config.ema_decay, (1 + step) / (10 + step)) if config.ema_ramp else config.ema_decay


@dataclass(frozen=True)
class StepMetrics:
    loss: float
    level_losses: tuple[float, ...]  # unweighted squared error per level, highest first
    grad_norm: float  # before clipping
    extra: Mapping[str, float] = field(default_factory=dict[str, float])  # logged beside them


class Splittable(Protocol):
    """A batch of rows."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Self: ...


Rows = TypeVar("Rows", bound=Splittable)
Rows_contra = TypeVar("Rows_contra", contravariant=True)


@dataclass(frozen=True)
class Snapshot:
    """Everything that a resumed run needs, as NumPy arrays by name."""

    weights: Mapping[str, NDArray[np.float32]]
    ema: Mapping[str, NDArray[np.float32]] | None
    encoder: Mapping[str, NDArray[np.float32]] | None
    encoder_ema: Mapping[str, NDArray[np.float32]] | None
    optimizer: Mapping[str, NDArray[np.float32]]


class Learner(Protocol[Rows_contra]):
    """One backend's network, optimiser and average, learning from batches of some kind."""

    rank: int
    world: int

    def step(self, batch: Rows_contra, index: int) -> StepMetrics:
        """One optimisation step on this process's rows."""
        ...

    def validate(self, batch: Rows_contra) -> float:
        """Loss of the averaged weights, averaged over processes."""
        ...

    def any_asked(self, asked: bool) -> bool:
        """Whether any process was asked to stop; all of them call it after every step."""
        ...

    def snapshot(self) -> Snapshot: ...

    def restore(self, snapshot: Snapshot) -> None: ...

    def averaged(self) -> AbstractContextManager[Runtime]:
        """The network with its averaged weights, for sampling while this lasts."""
        ...


Stepper = Learner[Batch]  # learns from captioned pictures


Save = Callable[[Snapshot, int], None]
Draw = Callable[[Path], None]


def rows_of(config: TrainConfig, rank: int, world: int) -> NDArray[np.int64]:
    """Rows of the whole batch that a process takes, in the order of its accumulation steps.

    Strided, so that the first rows of the whole batch (which mixed-resolution training treats
    differently) are the first rows of every part.
    """
    parts = world * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size: expected a multiple of processes x accumulate ({parts}), "
            f"got {config.batch_size}."
        )
    strides = [
        np.arange(rank + world * k, config.batch_size, parts) for k in range(config.accumulate)
    ]
    return np.concatenate(strides)


def check_mixing(config: TrainConfig, diffusion: DiffusionConfig, world: int) -> None:
    """Refuse parts of a batch whose losses do not add up to that of the whole batch."""
    parts = world * config.accumulate
    part = config.batch_size // parts
    shares = diffusion.mixed_fractions or (1.0,)
    if int(min(shares) * part) < 1:
        raise ConfigError(
            f"batch_size: with this mixed_ratio each process and accumulation step needs "
            f"{math.ceil(1 / min(shares))} pictures or more, got {part}."
        )
    if any(parts * int(share * part) != int(share * config.batch_size) for share in shares):
        raise ConfigError(
            f"batch_size: {parts} parts of {part} pictures cannot be mixed as {shares} like the "
            f"whole batch of {config.batch_size}; choose one whose parts divide evenly."
        )
    if parts > 1 and diffusion.loss_weighting == "vdm":
        raise ConfigError(
            "accumulate: loss_weighting vdm weighs each picture against the whole batch, so it "
            f"needs one process and one accumulation step, got {parts} parts."
        )


def split_rows(batch: Rows, parts: int) -> list[Rows]:
    """The accumulation steps of a batch, in order."""
    size = len(batch) // parts
    return [batch.rows(k * size, (k + 1) * size) for k in range(parts)]


def train(
    stepper: Learner[Rows],
    loader: Iterable[Rows],
    config: TrainConfig,
    folder: Path,
    start: int,
    save: Save,
    stop: Event,
    validation: Sequence[Rows] = (),
    draw: Draw | None = None,
    quiet: bool = False,
) -> None:
    """Run steps `start` .. `config.steps` - 1 and leave the folder at the last one.

    Args:
        loader: yields the batch of each step from `start` on, with this process's rows.
        stop: set it to save after the current step and raise TrainingStoppedError.
        save: writes a snapshot as "all steps below N done"; called on rank 0 only.
        draw: paints a sample grid to a file.
    """
    first = stepper.rank == 0
    if first and start == 0:
        for stale in (folder / SAMPLES).glob("step_*.png"):
            stale.unlink()
    log = MetricsLog(folder / METRICS, start) if first else None
    bar = tqdm(
        total=config.steps, initial=start, unit="step", disable=quiet or not first, smoothing=0.05
    )
    began, seen = time.perf_counter(), 0
    for index, batch in zip(range(start, config.steps), loader, strict=False):
        metrics = stepper.step(batch, index)
        seen += config.batch_size
        done = index + 1
        if not math.isfinite(metrics.loss):
            raise TrainingDivergedError(
                f"loss is {metrics.loss} at step {index}; the last saved step is kept. "
                "Lower --lr or raise --warmup."
            )
        rate = seen / (time.perf_counter() - began)
        bar.set_postfix_str(f"loss {metrics.loss:.4f}, {rate:.1f} images/s", refresh=False)
        bar.update()
        if log and (done % config.log_every == 0 or done == config.steps):
            log.write(index, metrics, learning_rate(config, index), rate)
        if validation and (done % config.validate_every == 0 or done == config.steps):
            losses = [stepper.validate(b) for b in validation]
            if log:
                log.write_validation(index, float(np.mean(losses)))
        asked = stepper.any_asked(stop.is_set())
        if first and (done % config.save_every == 0 or done == config.steps or asked):
            save(stepper.snapshot(), done)
        if first and draw and config.sample_every and done % config.sample_every == 0:
            (folder / SAMPLES).mkdir(exist_ok=True)
            draw(folder / SAMPLES / f"step_{done:07d}.png")
        if asked and done < config.steps:
            bar.close()
            raise TrainingStoppedError(f"stopped after step {done} and saved; go on with --resume.")
    bar.close()


class TrainingDivergedError(MdmError):
    """The loss stopped being a number."""


class TrainingStoppedError(MdmError):
    """The user asked to stop; everything is saved."""


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
