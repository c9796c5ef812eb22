"""How to train: settings, and the learning rate and decay of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mdm_apple.config.ranges import in_range
from mdm_apple.config.types import TrainingPrecision
from mdm_apple.errors import ConfigError

MAX_ROWS = 1 << 20  # of a batch
# settings that a resumed run may change: they change no step
FREE_ON_RESUME = {
    "steps",
    "accumulate",  # only how a batch is processed; its loss is the same to rounding
    "save_every",
    "log_every",
    "validate_every",
    "sample_every",
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Batch sizes are totals over all processes and accumulation steps.

    accumulate: parts in which each process processes its rows; the step stays the same.
    """

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
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate: expected at most batch_size ({self.batch_size}) parts, "
                f"got {self.accumulate}."
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
