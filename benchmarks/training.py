"""One training step of ours against the original's network in a plain trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, in_turn, weights_hash
from benchmarks.networks import Forward, other_network
from mdm_apple.config.model import DiffusionConfig, ModelConfig, ScheduleConfig, TextConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.data.batches import Batch
from mdm_apple.diffusion.pyramid import build_pyramid
from mdm_apple.torch.learner import Objective, TorchOps, TorchPictureLearner
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.training.parts import whole
from mdm_apple.training.settings import TrainConfig

ROWS, TOKENS, TEXT = 4, 32, 256
SINGLE = UNetConfig(
    channels=(64, 128, 192),
    num_resnets=(2, 2, 2),
    num_attention_layers=(0, 1, 2),
    attention_ffn=True,
    text_dim=TEXT,
    micro_conditions={"scale": 64.0},
)
NESTED = UNetConfig(
    channels=(32, 64, 64),
    num_resnets=(1, 1, 1),
    num_attention_layers=(0, 0, 0),
    mid_blocks=False,
    temb_dim=256,
    inner=UNetConfig(
        channels=(64, 128),
        num_resnets=(2, 2),
        num_attention_layers=(0, 1),
        attention_ffn=True,
        text_dim=TEXT,
    ),
)


def training_step(unet: UNetConfig, name: str, repetitions: int) -> Row:
    """One fp32 step at 64 px, batch 4, with clipping, Adam and averages.

    The row's difference compares the losses before any step.
    """
    diffusion = DiffusionConfig(ScheduleConfig("deepfloyd"), loss_target="eps")
    config = ModelConfig(unet, 64, diffusion, TextConfig(max_tokens=TOKENS))
    other_name, other, run = other_network(unet)
    sha256 = weights_hash(other)
    ours = build_unet(unet)
    ours.load_state_dict(other.state_dict())
    text, mask = torch.randn(ROWS, TOKENS, TEXT), torch.ones(ROWS, TOKENS)
    train = TrainConfig(steps=10**6, batch_size=ROWS, lr=1e-4, ema_ramp=False)
    ours = ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = TorchPictureLearner(
        ours, config, train, lambda captions, beside=None: (text, mask, None)
    )
    batch = _batch(config)
    their_step = plain_step(other, run, config, batch, text, mask)
    wanted, got = their_step(), learner.step(batch, 1).loss
    mine, its = in_turn(lambda: learner.step(batch, 1), their_step, repetitions=repetitions)
    difference = abs(wanted - got) / abs(wanted)
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    name = f"training step, {name}, {millions:.1f} M, fp32"
    return Row(name, mine, other_name, its, difference, model_sha256=sha256)


def plain_step(
    net: nn.Module, run: Forward, config: ModelConfig, batch: Batch, text: Tensor, mask: Tensor
) -> Callable[[], float]:
    """Loss, backward, clip, Adam and averaging, tensor by tensor as in the original trainer."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    scales = config.model.scales
    objective = Objective(config.diffusion, scales, torch.device("cpu"))
    ops = TorchOps()
    x0 = build_pyramid(torch.from_numpy(batch.images), config.model, ops)
    eps = [torch.from_numpy(level) for level in batch.noise]
    times = torch.from_numpy(batch.times)

    def step() -> float:
        net.train()
        optimizer.zero_grad()
        parts = objective(
            lambda x: run(net, x, times, text, mask), x0, eps, batch.times, ops, whole(len(times))
        )
        loss = parts.per_sample.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in net.state_dict().items():
                average[name].copy_(average[name] * 0.9999 + value * 0.0001)
        return float(loss.detach())

    return step


def _batch(config: ModelConfig) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(ROWS, 3, config.side, config.side, generator=generator) * 2 - 1
    noise = [torch.randn(ROWS, 3, s, s, generator=generator).numpy() for s in config.sides]
    times: Any = torch.tensor([50, 300, 600, 900])
    return Batch(images.numpy(), [""] * ROWS, {}, times.numpy(), times.numpy(), noise)
