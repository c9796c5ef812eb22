"""One training run for either backend: the same start, the same batches.

As a program: losses of the run that `Run` describes in JSON, in torch, with as many threads as
the second argument says; another number of threads is another order of sums.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from backends import BACKENDS, Backend
from small import (
    CAPTIONS,
    around,
    normal,
    plain,
    random_state,
    random_weights,
    small_emoji,
)

from mdm_apple.config.model import DiffusionConfig, ModelConfig, ScheduleConfig
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.data.batches import Batch, BatchPlan, Draws, make_batch
from mdm_apple.data.open import open_dataset
from mdm_apple.text.tokenizer import train_tokenizer
from mdm_apple.training.learner import PictureLearner
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job, Start

Text = tuple[np.ndarray, np.ndarray]


def no_text() -> Text:
    return np.zeros((1, 1, 1), np.float32), np.ones((1, 1), np.float32)


def nest(side: int = 8, **outer: Any) -> ModelConfig:
    """Two levels without text."""
    core = plain(text_dim=None, channels=(32,), num_resnets=(1,), num_attention_layers=(0,))
    schedule = ScheduleConfig("cosine", shift_power=1.0)
    return ModelConfig(around(core, **outer), side, DiffusionConfig(schedule))


def batch_of(config: ModelConfig, rows: int, seed: int = 0) -> Batch:
    """Noise for pictures."""
    times = np.random.RandomState(seed).randint(0, 1000, rows)
    noise = [normal(seed + 7 * i, rows, 3, side, side) for i, side in enumerate(config.sides)]
    images = np.tanh(normal(seed + 3, rows, 3, config.side, config.side))
    return Batch(images, [""] * rows, {}, np.arange(rows), times, noise)


@dataclass(frozen=True)
class Run:
    """The small emoji model with its text encoder, on a folder of pictures."""

    pictures: str
    steps: int
    train: TrainConfig

    def start(self) -> Start:
        """Random everywhere, where a fresh model has zeros, too."""
        config = small_emoji()
        assert config.text is not None
        assert config.text.encoder is not None
        encoder = random_weights(encoder_shapes(config.text.encoder), 1)
        return Start(weights=random_state(config.model), encoder=encoder)

    def learner(self, backend: Backend, start: Start | None = None) -> PictureLearner:
        config = small_emoji()
        assert config.text is not None
        assert config.text.encoder is not None
        job = Job(config, self.train, self.pictures, Path("nowhere"))
        size = config.text.encoder.vocab_size
        tokenizer = train_tokenizer(CAPTIONS, size, lowercase=True)
        return backend.open_learner(config, job, tokenizer, start or self.start())

    def batches(self) -> Iterator[Batch]:
        config: ModelConfig = small_emoji()
        dataset = open_dataset(self.pictures, config.side)
        plan = BatchPlan(len(dataset), self.train.batch_size, self.train.seed)
        draws = Draws(self.train.seed, config.sides, config.diffusion, self.train.caption_dropout)
        for step in range(self.steps):
            yield make_batch(dataset, plan.indices(step), draws, step)

    def losses(
        self, learner: PictureLearner, after: Callable[[], object] = lambda: None
    ) -> list[float]:
        """Loss of every step; `after` is called after each."""
        found = []
        for step, batch in enumerate(self.batches()):
            found.append(learner.step(batch, step).loss)
            after()
        return found

    def losses_with_threads(self, threads: int) -> list[float]:
        """Those of torch, in a process of its own with so many threads."""
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(dataclasses.asdict(self)), str(threads)],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "passive",  # threads must not spin: there may be fewer cores
            },
        )
        return json.loads(done.stdout)


def main() -> None:
    import torch

    torch.set_num_threads(int(sys.argv[2]))  # it would take no more than there are cores
    asked = json.loads(sys.argv[1])
    run = Run(**asked | {"train": TrainConfig(**asked["train"])})
    print(json.dumps(run.losses(run.learner(BACKENDS["torch"]()))))


if __name__ == "__main__":
    main()
