"""Blocks of the 1024 px model at their real width and size, through both runtimes.

The whole network is too slow for the interpreter of Apple's wheels, so it is proven piece by
piece: of each level a resnet, an attention layer if it has any, its first block with the way down,
the block that leads back up to its side, and its last block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from coreai_wheels import needs_coreai
from numpy.typing import NDArray
from torch import Tensor, nn

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Compute, ExecutorPrecision
from mdm_apple.conversion.convert import convert_part
from mdm_apple.conversion.coreai.packages import write_package
from mdm_apple.conversion.coreai.runtime import AppleRuntime
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.layouts.parts import Part
from mdm_apple.conversion.neural_engine import for_neural_engine
from mdm_apple.conversion.psnr import closeness
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.torch.nested_unet import build_unet
from mdm_apple.torch.unet import Block, UNet

pytestmark = [needs_coreai, pytest.mark.slow, pytest.mark.timeout(3600)]

SIDES = (1024, 256, 64)
FLOORS: dict[ExecutorPrecision, float] = {"fp32": 100.0, "fp16": 55.0}
# Outside macOS, Apple's runtime adds up the numbers of a plain group norm one by one. Two million
# fp32 numbers then cost 60 dB: 96 dB at 1024 px, where the layers for the Neural Engine keep 156.
ONE_BY_ONE = 95.0
# What is added to one weight of a twin. That moves one of C channels by about as much, so all of
# them by that over the root of C, where the peak is about 5: large enough to be seen at each floor.
# At 64 px, where C is largest, the twins are at 31 to 46 dB in fp16, and 70 to 86 in fp32.
MOVED: dict[ExecutorPrecision, float] = {"fp16": 2.0, "fp32": 0.02}


@dataclass(frozen=True)
class Piece:
    """module: takes (x, temb) and skips, or (x, keys, values). inputs: by name."""

    module: nn.Module
    inputs: dict[str, Tensor]


class Layers(nn.Module):
    """Resnets of a block in turn, each with its skip if there are any, then the resampling."""

    def __init__(self, resnets: Sequence[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.resnets, self.resample = nn.ModuleList(resnets), resample

    def forward(self, x: Tensor, temb: Tensor, *skips: Tensor) -> Tensor:
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, temb, skips[j] if skips else None)
        return x if self.resample is None else self.resample(x)


class Attending(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.layer(x, (keys, values), None)


def level(side: int, compute: Compute) -> UNet:
    """One level of the 1024 px model with random weights, without the levels inside it."""
    config = preset("mdm1024").model.levels[SIDES.index(side)]
    alone = UNetConfig(**{**vars(config), "inner": None, "text_dim": 2048, "temb_dim": 1024})
    with torch.random.fork_rng():
        torch.manual_seed(side)
        net = build_unet(alone).eval().requires_grad_(False)
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return for_neural_engine(net) if compute == "ane" else net


def piece(kind: str, side: int, compute: Compute) -> Piece:
    net = level(side, compute)
    blocks = [cast(Block, b) for b in net.down_blocks]
    width, draw = net.config.channels[0], torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    temb = {"temb": numbers(1, 1024)}
    if kind == "resnet":
        return Piece(
            Layers(blocks[0].resnets[:1], None), {"x": numbers(1, width, side, side), **temb}
        )
    if kind == "down":
        layers = Layers(list(blocks[0].resnets), blocks[0].resample)
        return Piece(layers, {"x": numbers(1, width, side, side), **temb})
    if kind in ("up", "last"):
        # The last block stays at the level's side; the one before it ends in the way up to it.
        stage = 1 if kind == "up" else 0
        block, at = cast(Block, net.up_blocks[-1 - stage]), side >> stage
        assert (block.resample is not None) == (kind == "up")
        below, own = net.config.channels[stage + 1], net.config.channels[stage]
        skips = {}
        for j, resnet in enumerate(block.resnets):
            taken = below if j == 0 else own
            came = resnet.conv1.weight.shape[1] - taken  # type: ignore[union-attr]
            skips[f"skip_{j}"] = numbers(1, came, at, at)
        x = numbers(1, below, at, at)
        return Piece(Layers(list(block.resnets), block.resample), {"x": x, **temb, **skips})
    attention = blocks[1].attn[0]
    channels, half = net.config.channels[1], side // 2
    keys, values = (1, 8, 128, channels // 8), (1, 8, 128, channels // 8)
    if compute == "ane":
        keys, values = (1, 128, 1, channels), (1, channels, 1, 128)
    given = {"x": numbers(1, channels, half, half), "keys": numbers(*keys)}
    return Piece(Attending(attention), given | {"values": numbers(*values)})


CASES = [
    *((kind, side) for side in SIDES for kind in ("resnet", "down", "up", "last")),
    ("attention", 64),  # the outer levels have none
]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("compute", ["ane", "gpu"])
@pytest.mark.parametrize(("kind", "side"), CASES)
def test_a_block_computes_what_torch_does(
    kind: str, side: int, compute: Compute, precision: ExecutorPrecision, tmp_path: Path
) -> None:
    made = piece(kind, side, compute)
    part = Part(f"{kind}_{side}", "step", made.module, made.inputs, ("y",), None, compute)
    rounded = copy.deepcopy(made.module).half().float()
    with torch.inference_mode():
        wanted = rounded(*made.inputs.values()).numpy()
        moved = _with_one_weight_moved(rounded, MOVED[precision])(*made.inputs.values()).numpy()
    for who, value in outputs(part, precision, tmp_path).items():
        least = FLOORS[precision]
        if (who, compute, side, precision) == ("Apple's runtime", "gpu", 1024, "fp32"):
            least = ONE_BY_ONE
        reached, twin = closeness(wanted, value).psnr, closeness(moved, value).psnr
        print(f"{part.name} {compute} {precision}, {who}: {reached:.1f} dB, twin {twin:.1f}")
        assert reached >= least, who
        assert twin < least, f"{who}: the twin must fail"


def outputs(part: Part, precision: ExecutorPrecision, folder: Path) -> dict[str, NDArray[Any]]:
    """What each of the two runtimes computes."""
    given = {name: value.numpy() for name, value in part.inputs.items()}
    source = ModelSource(preset("mdm1024"), build_unet(preset("tiny").model))
    convert_part(part, folder / f"{part.name}.mlpackage", "iOS18", source)
    package = Package.open(folder / f"{part.name}.mlpackage")
    found = {"the executor": package.load(None, precision=precision)(given)["y"]}
    path = folder / f"{part.name}.aimodel"
    write_package([part], path, None, precision)
    runtime = AppleRuntime()
    found["Apple's runtime"] = runtime(path, None, "all")(given)["y"]
    runtime.close()
    return {who: np.asarray(value) for who, value in found.items()}


def _with_one_weight_moved(module: nn.Module, by: float) -> nn.Module:
    """The middle of one kernel of the last convolution, which is the last thing that runs."""
    twin = copy.deepcopy(module)
    weight = [p for p in twin.parameters() if p.ndim == 4][-1]
    with torch.no_grad():
        weight[0, 0, weight.shape[2] // 2, weight.shape[3] // 2] += by
    return twin
