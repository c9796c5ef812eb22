"""Small .aimodel files of a few operations, made by Apple's converter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def save_asset(path: Path, module: nn.Module, x: Tensor, outputs: Sequence[str] = ("y",)) -> Path:
    """A file whose function `main` takes `x`."""
    with quiet():
        from coreai_torch import TorchConverter, get_decomp_table

        program = torch.export.export(module, (x,), strict=False)
        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
        converter.add_exported_program(
            program.run_decompositions(get_decomp_table()),
            input_names=["x"],
            output_names=list(outputs),
        )
        converter.to_coreai().save_asset(path)
    return path
