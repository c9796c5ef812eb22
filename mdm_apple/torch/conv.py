"""3x3 convolutions whose weight gradient is nine matrix products, where a CPU gains from it.

With channels last, oneDNN computes the gradient of a large image's weights at half the speed of a
matrix product. The gradient of tap (i, j) is the product of the padded input, shifted by i rows and
j pixels, with the gradient of the output; on a padded grid stored pixel by pixel every shift is a
plain offset, so nothing is gathered.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

# below these the library's own gradient is as fast (measured with AVX2, one and two threads)
WORTHWHILE_CHANNELS = 64
WORTHWHILE_PIXELS = 4096  # of the whole batch


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d` with a 3x3 kernel, stride 1 and padding 1; same parameters, same output."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        if self._gains(input):
            return _Products.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]
        return super().forward(input)

    def _gains(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and min(self.in_channels, self.out_channels) >= WORTHWHILE_CHANNELS
            and x.shape[0] * x.shape[2] * x.shape[3] >= WORTHWHILE_PIXELS
            and not torch.compiler.is_compiling()
        )


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (grad,), (x, weight) = grad_outputs, ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(list(x.shape), weight, grad, padding=1)
        return grad_x, weight_gradient(x, grad), grad.sum(dim=(0, 2, 3))


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient (C_out, C_in, 3, 3) of the weight from input and output gradient (B, C, H, W)."""
    row = x.shape[3] + 2
    pixels = _on_padded_grid(x, top_left=1)
    errors = _on_padded_grid(grad, top_left=0)  # what lies between two images is zero
    count = len(pixels) - 2 * row - 2  # rows after this one are padding of the last image
    out = x.new_empty(3, 3, x.shape[1], grad.shape[1])
    for i in range(3):
        for j in range(3):
            start = i * row + j
            torch.mm(pixels[start : start + count].T, errors[:count], out=out[i, j])
    return out.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _on_padded_grid(x: Tensor, top_left: int) -> Tensor:
    """Images (B, C, H, W) within zeros of two more rows and columns: (B (H + 2) (W + 2), C)."""
    batch, channels, height, width = x.shape
    grid = x.new_empty(batch, height + 2, width + 2, channels)
    bottom, right = top_left + height, top_left + width
    grid[:, top_left:bottom, top_left:right] = x.permute(0, 2, 3, 1)
    for rim in (grid[:, :top_left], grid[:, bottom:], grid[:, :, :top_left], grid[:, :, right:]):
        rim.zero_()
    return grid.reshape(-1, channels)
