"""Small .aimodel files of a few operations, made by Apple's converter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdm_apple.conversion.coreai.wheels import quiet


class TwoSums(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class LargeSum(nn.Module):
    """Needs the square of the width of `x` (1, width) in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        return (x.expand(width, width) + 1).sum(0)


class Products(nn.Module):
    """Takes the interpreter 5 seconds at (2000, 2000)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ x) @ x


class Weighted(nn.Module):
    """A matrix of `count` rows; takes a permutation as well, which it only changes."""

    def __init__(self, count: int = 64, width: int = 32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn((count, width), generator=draw).half())

    def forward(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.weight.t(), order + 1


def program_of(
    functions: Mapping[str, tuple[nn.Module, Sequence[Tensor]]],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
) -> Any:
    """A program (`coreai.authoring.AIProgram`) with modules and example inputs as functions."""
    with quiet("coreai_torch"):
        from coreai_torch import TorchConverter, get_decomp_table

        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
        for name, (module, given) in functions.items():
            program = torch.export.export(module, tuple(given), strict=False)
            converter.add_exported_program(
                program.run_decompositions(get_decomp_table()),
                input_names=list(inputs),
                output_names=list(outputs),
                entrypoint_name=name,
            )
        return converter.to_coreai()


def save_asset(path: Path, module: nn.Module, x: Tensor, outputs: Sequence[str] = ("y",)) -> Path:
    """A file whose function `main` takes `x`."""
    program_of({"main": (module, [x])}, outputs=outputs).save_asset(path)
    return path
