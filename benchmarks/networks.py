"""Forward passes of our network against the original's, or against a plain eager reference."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.eager import build_eager, randomize_zeros, run_eager
from benchmarks.harness import Measured, Row, in_turn, largest_difference, weights_hash
from benchmarks.original import build_original, reference_path, run_original
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Precision
from mdm_apple.diffusion.arithmetic import guide
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.runtime import DTYPES, prepare

TOKENS, TEXT = 128, 2048
GUIDANCE = 4.0
# of the convolution whose pace defines the peak: 3x3, as wide and large as the inner network's
PEAK_CHANNELS, PEAK_SIDE = 512, 64

Forward = Callable[[nn.Module, list[Tensor], Tensor, Tensor, Tensor], list[Tensor]]


def other_network(config: UNetConfig) -> tuple[str, nn.Module, Forward]:
    """The network to compare ours with; the weights are the same each time and never zero."""
    torch.manual_seed(0)
    checkout = reference_path()
    if checkout is None:
        name, net, run = "plain eager", build_eager(config), run_eager
    else:
        name, net, run = "original", build_original(checkout, config), run_original
    randomize_zeros(net)
    return name, net, run


def forward_pass(preset_name: str, precision: Precision, repetitions: int) -> Row:
    """One forward pass, nothing precomputed, batch 1; the other network in fp32, as published.

    The share of the peak counts the multiplications and additions that the other's pass needs, per
    second of our pass, as a share of the pace of a convolution timed in turn with both.
    """
    model = preset(preset_name)
    name, other, run = other_network(model.model)
    sha256 = weights_hash(other)
    ours = build_unet(model.model)
    ours.load_state_dict(other.state_dict())
    ours, other = prepare(ours, torch.device("cpu"), precision, packed=True), other.eval()
    x, text, mask = inputs(model)
    channels_last = [level.to(memory_format=torch.channels_last) for level in x]
    when = torch.tensor([500])
    convolve, convolution_flops = peak_work(precision)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            wanted = run(other, x, when, text, mask)
        got = [level.float() for level in ours(channels_last, when, text, mask)]
        mine, its, peak = in_turn(
            lambda: ours(channels_last, when, text, mask),
            lambda: run(other, x, when, text, mask),
            convolve,
            repetitions=repetitions,
        )
    flops = counter.get_total_flops()
    pace = convolution_flops / peak.median
    return Row(
        f"forward, {preset_name}, {precision}",
        mine,
        name,
        its,
        largest_difference(wanted, got),
        figures={
            "GFLOP": flops / 1e9,
            "convolution peak, GFLOP/s": pace / 1e9,
            "share of that peak": flops / mine.median / pace,
            "SNR, dB": worst_snr(wanted, got),
        }
        | ({"its share": flops / its.median / pace} if precision == "fp32" else {}),
        model_sha256=sha256,
    )


def peak_work(precision: Precision) -> tuple[Callable[[], Tensor], int]:
    """A convolution in its fastest layout, and its operations: 2 per multiplication."""
    generator = torch.Generator().manual_seed(4)
    shape = (1, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE)
    dtype = DTYPES[precision]
    x = torch.randn(shape, generator=generator).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(PEAK_CHANNELS, PEAK_CHANNELS, 3, 3, generator=generator)
    weight = weight.to(dtype, memory_format=torch.channels_last)
    flops = 2 * PEAK_CHANNELS**2 * 9 * PEAK_SIDE**2
    return lambda: nn.functional.conv2d(x, weight, padding=1), flops


def inputs(model: ModelConfig) -> tuple[list[Tensor], Tensor, Tensor]:
    """Noise for every level, text features and an open mask, batch 1."""
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(1, 3, side, side, generator=generator) for side in model.sides]
    width = model.model.innermost.text_dim or TEXT
    return x, torch.randn(1, TOKENS, width, generator=generator), torch.ones(1, TOKENS)


def guided_step(precision: Precision, repetitions: int) -> Row:
    """One guided evaluation of mdm64; ours precomputes prompt and keys, as samplers do."""
    config = preset("mdm64").model
    name, other, run = other_network(config)
    sha256 = weights_hash(other)
    ours = build_unet(config)
    ours.load_state_dict(other.state_dict())
    ours = prepare(ours, torch.device("cpu"), precision, packed=True)
    other = other.eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text = torch.randn(2, TOKENS, TEXT, generator=torch.Generator().manual_seed(2))
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
            out = ours.denoise([channels_last], tembs, conditioning)[0].float()
            return guide(out[1:], out[:1], GUIDANCE)

        wanted, got = [theirs()], [our_step()]
        mine, its = in_turn(our_step, theirs, repetitions=repetitions)
    return Row(
        f"guided step, mdm64, {precision}",
        mine,
        name,
        its,
        largest_difference(wanted, got),
        figures={"SNR, dB": worst_snr(wanted, got)},
        model_sha256=sha256,
    )


def eager_forward(repetitions: int) -> Row:
    """The plain eager reference against the original: how fair a stand-in it is."""
    model = preset("mdm64")
    name, other, run = other_network(model.model)
    eager = build_eager(model.model)
    eager.load_state_dict(other.state_dict())
    x, text, mask = inputs(model)
    when = torch.tensor([500])
    with torch.inference_mode():
        wanted, got = run(other, x, when, text, mask), run_eager(eager, x, when, text, mask)
        mine, its = in_turn(
            lambda: run_eager(eager, x, when, text, mask),
            lambda: run(other, x, when, text, mask),
            repetitions=repetitions,
        )
    return Row(
        "plain eager forward, mdm64",
        mine,
        name,
        its,
        largest_difference(wanted, got),
        model_sha256=weights_hash(other),
    )


def forward_memory(preset_name: str, repetitions: int) -> Row:
    """Peak memory of a process that builds one network and runs it once, batch 1."""
    sides: dict[str, list[float]] = {"ours": [], "other": []}
    for _ in range(repetitions):
        for side, values in sides.items():
            values.append(_memory_of(side, preset_name))
    name = "plain eager" if reference_path() is None else "original"
    mine, its = Measured(sides["ours"]), Measured(sides["other"])
    return Row(
        f"peak memory of a forward, {preset_name}, fp32",
        mine,
        name,
        its,
        unit="bytes",
        note="each side in a process of its own, random weights included, no warm-up",
        warm_up=0,
        in_process=False,
    )


def _memory_of(side: str, preset_name: str) -> float:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", side, preset_name],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    return float(json.loads(done.stdout))


def worst_snr(wanted: list[Tensor], got: list[Tensor]) -> float:
    """SNR of the worst level in dB; 400 for equal numbers, because JSON has no infinity."""
    ratios = [
        float(w.square().mean().sqrt() / (w - g).square().mean().sqrt().clamp_min(1e-20))
        for w, g in zip(wanted, got, strict=True)
    ]
    return min(400.0, 20 * math.log10(min(ratios)))
