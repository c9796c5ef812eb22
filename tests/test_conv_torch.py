"""Convolutions of our own making, and their gradients, against the library's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from mdm_apple.torch.cpu.conv import Conv3x3, UpsampleConv3x3, upsample_nearest, weight_gradient

SHAPES = [(1, 3, 5, 4, 4), (3, 7, 2, 5, 9), (2, 64, 65, 8, 6)]  # B, C_in, C_out, H, W


def gradient_error(shape: tuple[int, ...], taps: int, nudge: float = 0.0) -> float:
    batch, c_in, c_out, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, c_in, height, width, generator=generator, dtype=torch.float64)
    size = (batch, c_out, height + 3 - taps, width + 3 - taps)
    grad = torch.randn(size, generator=generator, dtype=torch.float64)
    wanted = conv2d_weight(x, [c_out, c_in, taps, taps], grad, padding=1)
    x[-1, 0, -1, -1] += nudge  # the last pixel: the one that wrong padding would lose
    return float((weight_gradient(x, grad) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient_is_that_of_the_library(shape: tuple[int, ...], taps: int) -> None:
    assert gradient_error(shape, taps) < 1e-13


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient_of_one_changed_pixel_is_another(shape: tuple[int, ...], taps: int) -> None:
    assert gradient_error(shape, taps, nudge=0.1) > 1e-5


@pytest.mark.parametrize("width", [64, 32])  # with matrix products, and below their threshold
def test_all_gradients_of_the_layer_are_those_of_a_plain_convolution(width: int) -> None:
    torch.manual_seed(1)
    layer = Conv3x3(width, width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, width, 64, 64).to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(2, width, 64, 64)
    used = "_Products" in type(layer(x).grad_fn).__name__
    layer(x).backward(grad)
    assert layer.weight.grad is not None
    assert layer.bias is not None
    got = [x.grad, layer.weight.grad, layer.bias.grad]
    exact = [p.detach().double().requires_grad_() for p in (x, layer.weight, layer.bias)]
    F.conv2d(*exact, padding=1).backward(grad.double())
    for mine, wanted in zip(got, exact, strict=True):
        assert mine is not None
        assert wanted.grad is not None
        assert float((mine - wanted.grad).abs().max() / wanted.grad.abs().max()) < 1e-5
    assert used == (width >= 64)


def upsampling_errors(width: int, nudge: float = 0.0) -> list[float]:
    """Of the output and of three gradients, relative to those of the two plain operations."""
    torch.manual_seed(2)
    layer = UpsampleConv3x3(width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert layer.bias is not None
    x = torch.randn(2, width, 21, 34).to(memory_format=torch.channels_last).requires_grad_()
    exact = [p.detach().double().requires_grad_() for p in (x, layer.weight, layer.bias)]
    with torch.no_grad():
        layer.weight[0, 1, 2, 0] += nudge
    wanted = F.conv2d(upsample_nearest(exact[0]), *exact[1:], padding=1)
    got = layer(x)
    grad = torch.randn(got.shape)
    mine = torch.autograd.grad(got, (x, layer.weight, layer.bias), grad)
    theirs = torch.autograd.grad(wanted, exact, grad.double())
    pairs = zip((got, *mine), (wanted, *theirs), strict=True)
    return [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs]


@pytest.mark.parametrize("width", [8, 96])  # below the threshold of matrix products, and above
def test_upsampling_convolution_and_its_gradients_are_those_of_two_operations(width: int) -> None:
    assert max(upsampling_errors(width)) < 1e-5


def test_upsampling_convolution_with_one_perturbed_weight_is_another() -> None:
    output, to_x, *_ = upsampling_errors(8, nudge=0.05)
    assert min(output, to_x) > 1e-3
