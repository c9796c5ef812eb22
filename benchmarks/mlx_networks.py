"""MLX against plain eager PyTorch on one CPU, in CPU seconds of one process and with one BLAS.

This says nothing about a Mac; it bounds the work of the MLX network beyond the necessary
arithmetic. MLX runs uncompiled, because compiling on a CPU first takes half a minute. The ratio
depends on the network: MLX's softmax is slow on a CPU, so more attention for the width means a
larger ratio. Hence two networks, one of them narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.eager import build_eager, randomize_zeros, run_eager
from benchmarks.harness import Row, in_turn, weights_hash
from benchmarks.training import plain_step
from mdm_apple.config.model import DiffusionConfig, ModelConfig, ScheduleConfig, TextConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.data.batches import Batch
from mdm_apple.training.settings import TrainConfig

ROWS, SIDE, TOKENS, TEXT = 8, 32, 32, 128
UNET = UNetConfig(
    channels=(64, 128, 192),
    num_resnets=(2, 2, 2),
    num_attention_layers=(0, 1, 2),
    attention_ffn=True,
    text_dim=TEXT,
)
CONFIG = ModelConfig(
    UNET, SIDE, DiffusionConfig(ScheduleConfig("cosine")), TextConfig(max_tokens=TOKENS)
)
NARROW = replace(UNET, channels=(64, 128), num_resnets=(2, 2), num_attention_layers=(0, 2))


def mlx_forward(repetitions: int) -> Row:
    """One forward pass of a 17 M parameter network, 32 px, batch 8, fp32."""
    return _forward(UNET, "MLX forward, CPU seconds", repetitions)


def mlx_narrow(repetitions: int) -> Row:
    """The same with two levels instead of three, with attention throughout the lower one."""
    return _forward(NARROW, "MLX forward, narrow network, CPU seconds", repetitions)


def _forward(unet: UNetConfig, name: str, repetitions: int) -> Row:
    import mlx.core as mx

    theirs, ours = _networks(unet)
    batch, text, mask = _batch(), *_text()
    times = torch.from_numpy(batch.times)
    image = mx.array(np.ascontiguousarray(batch.noise[0].transpose(0, 2, 3, 1)))
    given = [mx.array(x) for x in (batch.times, text.numpy(), mask.numpy())]

    def our_pass() -> Any:
        out = ours([image], *given)[0]
        mx.eval(out)
        return out

    def their_pass() -> Tensor:
        return run_eager(theirs, [torch.from_numpy(batch.noise[0])], times, text, mask)[0]

    with torch.inference_mode():
        got = np.array(our_pass()).transpose(0, 3, 1, 2)
        wanted = their_pass().numpy()
        mine, its = in_turn(our_pass, their_pass, repetitions=repetitions, basis="cpu")
    difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    return Row(
        name,
        mine,
        "plain eager",
        its,
        difference,
        basis="cpu",
        model_sha256=weights_hash(theirs),
    )


def mlx_training(repetitions: int) -> Row:
    """One fp32 training step of the same network, with clipping, Adam and averages."""
    import mlx.core as mx

    from mdm_apple.mlx.learner import MlxPictureLearner
    from mdm_apple.mlx.text import Text

    theirs, ours = _networks(UNET)
    batch, text, mask = _batch(), *_text()
    train = TrainConfig(steps=10**6, batch_size=ROWS, lr=1e-4, ema_ramp=False)

    class Given:
        encoder = None

        def inputs(self, captions: Sequence[str], beside: Sequence[str] | None = None) -> Text:
            return mx.array(text.numpy()), mx.array(mask.numpy()), None

        def features(self, values: mx.array, mask: mx.array, seen: mx.array | None) -> Text:
            return values, mask, seen

    learner = MlxPictureLearner(ours, CONFIG, train, Given(), compiled=False)
    their_step = plain_step(theirs, run_eager, CONFIG, batch, text, mask)
    sha256 = weights_hash(theirs)
    wanted, got = their_step(), learner.step(batch, 1).loss
    mine, its = in_turn(
        lambda: learner.step(batch, 1), their_step, repetitions=repetitions, basis="cpu"
    )
    return Row(
        "MLX training step, CPU seconds",
        mine,
        "plain eager",
        its,
        abs(wanted - got) / abs(wanted),
        basis="cpu",
        model_sha256=sha256,
    )


def _networks(unet: UNetConfig) -> tuple[Any, Any]:
    """Both networks with the same weights, none of them zero."""
    from mdm_apple.mlx.nested_unet import build_unet
    from mdm_apple.mlx.weights import load_weights

    theirs = build_eager(unet)
    randomize_zeros(theirs)
    ours = build_unet(unet)
    load_weights(ours, {k: v.numpy() for k, v in theirs.state_dict().items()})
    return theirs.eval(), ours.eval()


def _text() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(ROWS, TOKENS)
    mask[:, TOKENS // 2 :] = 0
    return torch.randn(ROWS, TOKENS, TEXT, generator=generator), mask


def _batch() -> Batch:
    random = np.random.RandomState(3)
    images = np.tanh(random.standard_normal((ROWS, 3, SIDE, SIDE))).astype(np.float32)
    noise = random.standard_normal(images.shape).astype(np.float32)
    times = np.linspace(50, 950, ROWS).astype(np.int64)
    return Batch(images, [""] * ROWS, {}, times, times, [noise])
