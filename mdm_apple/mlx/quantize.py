"""Linear layers in 8 or 4 bits, and the cost: bytes before and after, PSNR of predictions.

MLX quantizes a row's weights in groups with a scale and an offset each; convolutions and norms stay
unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mdm_apple.config.model import ModelConfig
from mdm_apple.config.types import Bits
from mdm_apple.mlx.precision import may_be_reduced
from mdm_apple.mlx.runtime import MlxRuntime
from mdm_apple.mlx.weights import flat
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import Denoise, JumpTo, SamplerConfig

GROUPS = (64, 32)  # weights that share a scale; the larger one if it divides the row


@dataclass(frozen=True)
class Quantized:
    """Bytes of all weights before and after, and the number of converted layers."""

    layers: int
    before: int
    after: int


def quantize(module: nn.Module, bits: Bits) -> Quantized:
    """Convert in place every reducible Linear layer whose rows divide into groups."""
    before = weight_bytes(module)
    converted: list[str] = []

    def choose(name: str, layer: nn.Module) -> bool | dict[str, int]:
        group = _group(layer) if may_be_reduced(name, layer) else None
        if group is None:
            return False
        converted.append(name)
        return {"group_size": group, "bits": bits}

    nn.quantize(module, bits=bits, class_predicate=choose)
    mx.eval(module.parameters())
    return Quantized(len(converted), before, weight_bytes(module))


def weight_bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in flat(module.parameters()).values())


def quantize_runtime(
    runtime: MlxRuntime, bits: Bits, prompt: Prompt, first_level: int = 0
) -> tuple[Quantized, float]:
    """Quantize the network of a runtime and return the worst PSNR of its predictions in dB.

    The predictions are compared with the original network's, per level, on noisy images of a short
    trajectory of `prompt` at high, middle and low noise.
    """
    recorder, sampler = _Recorder(runtime), _probing(runtime.config)
    finish(generate(recorder, [prompt], sampler, runtime.config.sides[first_level]))
    done = quantize(runtime.net, bits)
    student = runtime.config.distilled is not None
    open_network = runtime.jumper if student else runtime.denoiser
    network = open_network([prompt], sampler.guidance_scale, first_level)
    worst = math.inf
    for given, wanted in recorder.calls:
        worst = min(worst, *map(_psnr, wanted, network(*given)))
    return done, worst


def _probing(config: ModelConfig) -> SamplerConfig:
    """The trajectory for comparing predictions: unguided, or a student's longest."""
    distilled = config.distilled
    if distilled is None:
        return SamplerConfig("ddim", 3, guidance_scale=1.0)
    weight = distilled.guidance[0] if distilled.guidance else 1.0
    return SamplerConfig("student", len(distilled.starts), guidance_scale=weight)


class _Recorder:
    """A runtime that records the inputs and predictions of every evaluation."""

    def __init__(self, runtime: MlxRuntime) -> None:
        self._runtime = runtime
        self.config, self.ops = runtime.config, runtime.ops
        self.schedule = runtime.schedule
        self.image, self.numpy = runtime.image, runtime.numpy
        self.calls: list[tuple[tuple[Any, ...], list[mx.array]]] = []

    def denoiser(
        self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int
    ) -> Denoise:
        return self._recorded(self._runtime.denoiser(prompts, guidance_scale, first_level))

    def jumper(self, prompts: Sequence[Prompt], guidance_scale: float, first_level: int) -> JumpTo:
        return self._recorded(self._runtime.jumper(prompts, guidance_scale, first_level))

    def _recorded(self, network: Callable[..., Sequence[mx.array]]) -> Callable[..., Any]:
        def recorded(*given: Any) -> list[mx.array]:
            out = list(network(*given))
            mx.eval(given[0], out)
            self.calls.append((given, out))
            return out

        return recorded


def _psnr(reference: mx.array, got: mx.array) -> float:
    wanted, found = np.array(reference, np.float64), np.array(got, np.float64)
    error = float(np.sqrt(np.mean((wanted - found) ** 2)))
    return 20 * math.log10(float(np.abs(wanted).max()) / error) if error else math.inf


def _group(layer: nn.Module) -> int | None:
    if not isinstance(layer, nn.Linear):
        return None
    return next((group for group in GROUPS if layer.weight.shape[1] % group == 0), None)
