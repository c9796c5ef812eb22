"""The memory that a captured graph needs at once, on graphs small enough to count by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdm_apple.conversion.coreai.liveness import peak_bytes


def kilobyte() -> Tensor:
    return torch.zeros(16, 16)


def peak(module: nn.Module, *inputs: Tensor) -> int:
    program = torch.export.export(module, inputs, strict=False)
    return peak_bytes(program.run_decompositions({}))


class Selected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.select(0, 0) * x.select(0, 1)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16, 16))
        self.table = nn.Buffer(torch.zeros(16, 16))
        self.late = nn.Buffer(torch.zeros(16, 16), persistent=False)
        self.constant = torch.zeros(16, 16)

    def forward(self, p_x: Tensor, b_x: Tensor, c_x: Tensor) -> Tensor:
        given = p_x + b_x + c_x
        return given * self.weight * self.table * self.late * self.constant


def test_what_is_selected_shares_the_memory_of_its_base() -> None:
    assert peak(Selected(), torch.zeros(2, 16, 16)) == 3 * 1024  # the input and the product


def test_weights_are_those_of_the_signature_whatever_inputs_are_called() -> None:
    """At most three inputs and one sum at once; no parameter, buffer or constant counts."""
    assert peak(Chain(), kilobyte(), kilobyte(), kilobyte()) == 4 * 1024
