"""Winograd's convolution against the direct one, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import FORWARD
from torch import nn

from mdm_apple.torch.cpu.conv import Conv3x3
from mdm_apple.torch.cpu.packed import PackedConv2d, pack
from mdm_apple.torch.cpu.winograd import WORTHWHILE, WinogradConv2d

SHAPES = [(1, 3, 5, 4, 4), (2, 7, 4, 6, 10), (3, 5, 6, 5, 7), (1, 2, 2, 1, 1)]  # B, C, C_out, H, W


def error(shape: tuple[int, ...], nudge: float = 0.0) -> float:
    batch, c_in, c_out, height, width = shape
    torch.manual_seed(0)
    conv = Conv3x3(c_in, c_out).double()
    x = torch.randn(batch, c_in, height, width, dtype=torch.float64)
    with torch.no_grad():
        wanted = F.conv2d(x, conv.weight, conv.bias, padding=1)
        conv.weight[0, 0, 1, 1] += nudge
        got = WinogradConv2d(conv)(x)
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_winograd_equals_the_direct_convolution(shape: tuple[int, ...]) -> None:
    assert error(shape) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
def test_winograd_with_one_perturbed_weight_does_not_equal_it(shape: tuple[int, ...]) -> None:
    assert error(shape, nudge=0.05) > 1e-4


def test_rounding_errors_of_a_wide_layer_stay_within_a_forward_pass() -> None:
    """Not "smaller than the direct convolution's": which of the two rounds less depends on the
    processor."""
    torch.manual_seed(0)
    conv, x = Conv3x3(WORTHWHILE, 64), torch.randn(1, WORTHWHILE, 8, 8)
    with torch.no_grad():
        exact = F.conv2d(x.double(), conv.weight.double(), _bias(conv).double(), padding=1)
        ours = WinogradConv2d(conv)(x)
    assert float((ours - exact).abs().max()) <= FORWARD * float(exact.abs().max())


def test_packing_takes_winograd_for_the_widest_layers_only() -> None:
    net = nn.ModuleDict(
        {
            "wide": Conv3x3(WORTHWHILE, WORTHWHILE),
            "narrow": Conv3x3(WORTHWHILE, 64),
            "strided": nn.Conv2d(WORTHWHILE, WORTHWHILE, 3, stride=2, padding=1),
        }
    )
    pack(net)
    kinds = {name: type(module) for name, module in net.items()}
    assert kinds == {"wide": WinogradConv2d, "narrow": PackedConv2d, "strided": PackedConv2d}


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    assert conv.bias is not None
    return conv.bias
