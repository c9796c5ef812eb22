"""Our network and training step beside the original's, or beside a plain eager reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.eager import build_eager, randomize_zeros, run_eager
from benchmarks.harness import Pair, in_turn
from benchmarks.original import build_original, reference_path, run_original
from mdm_apple.batches import Batch
from mdm_apple.config import (
    DiffusionConfig,
    ModelConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
)
from mdm_apple.diffusion import guide
from mdm_apple.presets import preset
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.runtime import Precision, prepare
from mdm_apple.torch.train import Objective, TorchOps, TorchStepper
from mdm_apple.training import TrainConfig

TOKENS = 128
GUIDANCE = 4.0

Forward = Callable[[nn.Module, list[Tensor], Tensor, Tensor, Tensor], list[Tensor]]


def other_network(config: UNetConfig) -> tuple[str, nn.Module, Forward]:
    """What ours is measured against, with weights that are not zero."""
    checkout = reference_path()
    if checkout is None:
        name, net, run = "plain eager", build_eager(config), run_eager
    else:
        name, net, run = "original", build_original(checkout, config), run_original
    randomize_zeros(net)
    return name, net, run


def guided_step(precision: Precision, repetitions: int) -> Pair:
    """One guided evaluation of mdm64; ours has prompt and keys computed before, as samplers do."""
    config = preset("mdm64").model
    name, other, run = other_network(config)
    ours = build_unet(config)
    ours.load_state_dict(other.state_dict())
    ours = prepare(ours, torch.device("cpu"), precision, packed=True)
    other = other.eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, TOKENS, 2048, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, TOKENS)
    mask[0, 1:] = 0
    two = torch.cat([x, x])
    channels_last = two.to(memory_format=torch.channels_last)

    def theirs() -> Tensor:
        out = run(other, [two], torch.tensor([500, 500]), text, mask)[0].float()
        return guide(out[1:], out[:1], GUIDANCE)

    with torch.inference_mode():
        conditioning = ours.condition(text, mask)

        def our_step() -> Tensor:
            tembs = [t.expand(2, -1) for t in ours.embed(torch.tensor([500]))]
            out = ours.denoise([channels_last], tembs, conditioning)[0]
            return guide(out[1:], out[:1], GUIDANCE)

        wanted, got = theirs(), our_step()
        times = in_turn(our_step, theirs, repetitions)
    snr = 20 * math.log10(
        float(wanted.square().mean().sqrt() / (wanted - got).square().mean().sqrt())
    )
    return Pair(
        f"guided step, mdm64, {precision}",
        name,
        *times,
        _difference(wanted, got),
        f"SNR {snr:.0f} dB",
    )


def forward_pass(preset_name: str, repetitions: int) -> Pair:
    """One forward pass of an official shape, nothing precomputed, fp32, batch 1."""
    model = preset(preset_name)
    name, other, run = other_network(model.model)
    ours = build_unet(model.model)
    ours.load_state_dict(other.state_dict())
    ours, other = prepare(ours, torch.device("cpu"), packed=True), other.eval()
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(1, 3, side, side, generator=generator) for side in model.sides]
    text, mask = torch.randn(1, TOKENS, 2048, generator=generator), torch.ones(1, TOKENS)
    channels_last = [level.to(memory_format=torch.channels_last) for level in x]
    when = torch.tensor([500])
    with torch.inference_mode():
        wanted, got = run(other, x, when, text, mask), ours(channels_last, when, text, mask)
        times = in_turn(
            lambda: ours(channels_last, when, text, mask),
            lambda: run(other, x, when, text, mask),
            repetitions,
        )
    worst = max(_difference(a, b) for a, b in zip(wanted, got, strict=True))
    return Pair(f"forward, {preset_name}, fp32", name, *times, worst)


def eager_forward(repetitions: int) -> Pair:
    """The plain eager reference itself beside the original: how fair a stand-in it is."""
    model = preset("mdm64")
    name, other, run = other_network(model.model)
    eager = build_eager(model.model)
    eager.load_state_dict(other.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(1, 3, 64, 64, generator=generator)]
    text, mask = torch.randn(1, TOKENS, 2048, generator=generator), torch.ones(1, TOKENS)
    when = torch.tensor([500])
    with torch.inference_mode():
        wanted, got = run(other, x, when, text, mask), run_eager(eager, x, when, text, mask)
        times = in_turn(
            lambda: run_eager(eager, x, when, text, mask),
            lambda: run(other, x, when, text, mask),
            repetitions,
        )
    return Pair("plain eager forward, mdm64", name, *times, _difference(wanted[0], got[0]))


def training_step(repetitions: int) -> Pair:
    """One fp32 step of a 17.6 M parameter 64 px network, batch 4."""
    unet = UNetConfig(
        channels=(64, 128, 192),
        num_resnets=(2, 2, 2),
        num_attention_layers=(0, 1, 2),
        attention_ffn=True,
        text_dim=256,
        micro_conditions={"scale": 64.0},
    )
    diffusion = DiffusionConfig(ScheduleConfig("deepfloyd"), loss_target="eps")
    config = ModelConfig(unet, 64, diffusion, TextConfig(max_tokens=32))
    name, other, run = other_network(unet)
    ours = build_unet(unet)
    ours.load_state_dict(other.state_dict())
    text, mask = torch.randn(4, 32, 256), torch.ones(4, 32)
    train = TrainConfig(steps=10**6, batch_size=4, lr=1e-4, ema_ramp=False)
    ours = ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stepper = TorchStepper(ours, config, train, lambda _: (text, mask))
    batch = _batch()
    their_step = plain_step(other, run, config, batch, text, mask)
    wanted, got = their_step(), stepper.step(batch, 1).loss
    times = in_turn(lambda: stepper.step(batch, 1), their_step, repetitions)
    return Pair("training step, 17.6 M, fp32", name, *times, abs(wanted - got) / abs(wanted))


def plain_step(
    net: nn.Module, run: Forward, config: ModelConfig, batch: Batch, text: Tensor, mask: Tensor
) -> Callable[[], float]:
    """Loss, backward, clip, Adam and averaging as the original trainer does, tensor by tensor."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    objective = Objective(config.diffusion, (1,), torch.device("cpu"))
    x0, eps = torch.from_numpy(batch.images), torch.from_numpy(batch.noise[0])
    times = torch.from_numpy(batch.times)

    def step() -> float:
        net.train()
        optimizer.zero_grad()
        parts = objective(
            lambda x: run(net, x, times, text, mask), [x0], [eps], batch.times, TorchOps()
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


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1
    noise = torch.randn(4, 3, 64, 64, generator=generator)
    times: Any = torch.tensor([50, 300, 600, 900])
    return Batch(images.numpy(), [""] * 4, {}, times.numpy(), times.numpy(), [noise.numpy()])


def _difference(wanted: Tensor, got: Tensor) -> float:
    return float((wanted - got).abs().max() / wanted.abs().max())
