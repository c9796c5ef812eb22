"""The weight gradient by matrix products against the library's, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from mdm_apple.torch.conv import Conv3x3, weight_gradient

SHAPES = [(1, 3, 5, 4, 4), (3, 7, 2, 5, 9), (2, 64, 65, 8, 6)]  # B, C_in, C_out, H, W


def reference(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    shape = [grad.shape[1], x.shape[1], 3, 3]
    return conv2d_weight(x, shape, grad, padding=1)


def gradient_error(shape: tuple[int, ...], nudge: float = 0.0) -> float:
    batch, c_in, c_out, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, c_in, height, width, generator=generator, dtype=torch.float64)
    grad = torch.randn(batch, c_out, height, width, generator=generator, dtype=torch.float64)
    wanted = reference(x, grad)
    x[-1, 0, -1, -1] += nudge  # the last pixel: the one that wrong padding would lose
    return float((weight_gradient(x, grad) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient_is_that_of_the_library(shape: tuple[int, ...]) -> None:
    assert gradient_error(shape) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient_of_one_changed_pixel_is_another(shape: tuple[int, ...]) -> None:
    assert gradient_error(shape, nudge=0.1) > 1e-5


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
