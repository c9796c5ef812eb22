"""Dropout belongs to the row: parts of a batch drop what the whole batch drops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from small import CAPTIONS, normal, random_state, random_weights, trainable_model

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.data.batches import Batch
from mdm_apple.text.tokenizer import Tokenizer, train_tokenizer
from mdm_apple.training.learner import PictureLearner, Snapshot, StepMetrics
from mdm_apple.training.parts import rows_of
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job, Start

ROWS = 8


def dropping(share: float = 0.2) -> ModelConfig:
    """Both levels and the text encoder drop; the higher level sees half of the rows."""
    config = trainable_model()
    assert config.text is not None
    assert config.text.encoder is not None
    assert config.model.inner is not None
    inner = dataclasses.replace(config.model.inner, dropout=share)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=share, inner=inner),
        diffusion=dataclasses.replace(config.diffusion, mixed_ratio=(1.0, 1.0)),
        text=dataclasses.replace(
            config.text, encoder=dataclasses.replace(config.text.encoder, dropout=share)
        ),
    )


def batch(config: ModelConfig, rows: np.ndarray) -> Batch:
    return Batch(
        np.tanh(normal(0, ROWS, 3, config.side, config.side))[rows],
        [CAPTIONS[row] for row in rows],
        {"scale": np.full(len(rows), 8, np.float32)},
        rows,
        np.linspace(20, 900, ROWS).astype(int)[rows],
        [normal(i, ROWS, 3, side, side)[rows] for i, side in enumerate(config.sides)],
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = dropping().text
    assert text is not None
    assert text.encoder is not None
    return train_tokenizer(CAPTIONS, text.encoder.vocab_size, lowercase=text.lowercase)


def step(
    backend: Backend, tokenizer: Tokenizer, by_row: bool = True, share: float = 0.2, **settings: Any
) -> tuple[StepMetrics, dict[str, np.ndarray], PictureLearner]:
    """What the second of two steps reports, Adam's first means, and the learner."""
    config = dropping(share)
    train = TrainConfig(steps=2, batch_size=ROWS, warmup_steps=0, lr=1e-3, **settings)
    assert config.text is not None
    assert config.text.encoder is not None
    encoder = random_weights(encoder_shapes(config.text.encoder), 1)
    weights = random_state(config.model)  # fresh ones end in zeros, which hide what is dropped
    start = Start(weights=weights, encoder=encoder, dropout_by_row=by_row)
    job = Job(config, train, "nowhere", Path("nowhere"))
    learner = backend.open_learner(config, job, tokenizer, start)
    mine = batch(config, rows_of(train, 0, 1))
    learner.step(mine, 0)
    metrics = learner.step(mine, 1)
    means = learner.snapshot().optimizer
    return metrics, {k: v for k, v in means.items() if k.startswith("exp_avg.")}, learner


def furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    largest = max(float(np.abs(value).max()) for value in one.values())
    return max(float(np.abs(one[name] - other[name]).max()) for name in one) / largest


@pytest.mark.parametrize("more", [{"accumulate": 3}, {"accumulate": 2, "checkpointing": True}])
def test_parts_and_recomputation_drop_what_the_whole_batch_drops(
    backend: Backend, tokenizer: Tokenizer, more: dict[str, Any]
) -> None:
    whole, means, learner = step(backend, tokenizer)
    parted, other_means, _ = step(backend, tokenizer, **more)
    assert learner.dropout_by_row
    assert parted.loss == pytest.approx(whole.loss, rel=1e-5)
    assert furthest(means, other_means) < 1e-4
    without, means_without, _ = step(backend, tokenizer, share=0.0)
    assert without.loss != pytest.approx(whole.loss, rel=1e-4)  # it does drop
    assert furthest(means, means_without) > 1e-2


def test_an_older_run_draws_for_the_rows_of_a_part_together(
    backend: Backend, tokenizer: Tokenizer
) -> None:
    whole, _, learner = step(backend, tokenizer, by_row=False)
    parted, _, _ = step(backend, tokenizer, by_row=False, accumulate=2)
    assert not learner.dropout_by_row
    assert parted.loss != pytest.approx(whole.loss, rel=1e-5)


def test_the_share_that_is_dropped_is_the_one_asked_for(backend: Backend) -> None:
    ones = np.ones((64, 5, 300), np.float32)
    if backend.name == "torch":
        from mdm_apple.torch.dropout import Dropout, draw_by_row

        layer = Dropout(0.3)
        draw_by_row([layer], range(64))
        found = np.asarray(layer(backend.array(ones)))
        again = np.asarray(layer(backend.array(ones[:3])))
    else:
        from mdm_apple.mlx.dropout import Dropout as MlxDropout
        from mdm_apple.mlx.dropout import RowKeys, keys_of

        mlx_layer, rows = MlxDropout(0.3), RowKeys()
        rows.keys = keys_of([seed << 32 for seed in range(64)])
        mlx_layer.told_by(rows, 4)
        found = np.array(mlx_layer(backend.array(ones)))
        again = np.array(mlx_layer(backend.array(ones[:3])))
    assert (found[:3] == again).all()
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.7)} or np.allclose(found.max(), 1 / 0.7)
    assert (found == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert len(np.unique(found.reshape(64, -1) == 0, axis=0)) == 64  # each row has its own


def test_snapshots_hold_no_trace_of_dropout(backend: Backend, tokenizer: Tokenizer) -> None:
    def names(snapshot: Snapshot) -> list[list[str]]:
        return [sorted(snapshot.weights), sorted(snapshot.encoder or {})]

    with_dropout, without = (
        step(backend, tokenizer, share=share)[2].snapshot() for share in (0.2, 0.0)
    )
    assert names(with_dropout) == names(without)
