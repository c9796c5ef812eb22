"""How to train: settings, the learning rate and decay of each step, and each process's rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import DiffusionConfig
from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import TrainingPrecision
from mdm_apple.errors import ConfigError

MAX_ROWS = 1 << 20  # of a batch
# settings that a resumed run may change
FREE_ON_RESUME = {"steps", "save_every", "log_every", "validate_every", "sample_every"}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Batch sizes are totals over all processes and accumulation steps."""

    steps: int
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-4
    embedding_lr_scale: float = 1.0  # learning rate of token embeddings, as a multiple of lr
    warmup_steps: int = 100
    decay_share: float = 0.0  # share of the run, at its end, over which lr falls to zero (cosine)
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 2.0  # global gradient norm
    ema_decay: float | None = 0.9999  # None: no averaged weights
    ema_ramp: bool = True  # smaller decay at first, so that a short run shows in the average
    ema_warmup_steps: int = 0  # updates during which the average is a plain copy
    caption_dropout: float = 0.1  # share of captions replaced by the empty one, for guidance
    white_headroom: float = 0.0  # pure white is trained as 1 + this, so that clipping cleans it
    precision: TrainingPrecision = "fp32"
    checkpointing: bool = False  # recompute activations instead of keeping them
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    validate_every: int = 500
    sample_every: int = 0  # 0: none
    validation_share: float = 0.0  # share of the pictures held out

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1)
        for name in ("batch_size", "accumulate"):  # more rows than that fit no machine
            in_range(name, getattr(self, name), 1, MAX_ROWS)
        for name in ("save_every", "log_every", "validate_every"):
            in_range(name, getattr(self, name), 1, what="steps")
        for name in ("warmup_steps", "ema_warmup_steps", "sample_every"):
            in_range(name, getattr(self, name), 0, what="steps")
        for name in ("lr", "clip_norm"):
            in_range(name, getattr(self, name), 0, above=True, below=True)
        for name in ("embedding_lr_scale", "weight_decay", "white_headroom"):
            in_range(name, getattr(self, name), 0, below=True)
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size: expected a multiple of accumulate ({self.accumulate}), "
                f"got {self.batch_size}."
            )
        for name in ("decay_share", "caption_dropout", "beta1", "beta2", "validation_share"):
            in_range(name, getattr(self, name), 0, 1, below=True)
        in_range("ema_decay", self.ema_decay, 0, 1, below=True)


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


def rows_of(config: TrainConfig, rank: int, world: int) -> NDArray[np.int64]:
    """Rows of the whole batch that a process takes, in the order of its accumulation steps.

    The rows are strided, so that the first rows of the whole batch (which mixed-resolution training
    treats differently) are the first rows of every part.
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
    """Refuse parts of a batch whose losses do not add up to the loss of the whole batch."""
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
