"""3x3 convolutions, also of an image upsampled by two, in forms that are fast on a CPU.

With channels last, oneDNN computes the weight gradient for a large image at half the speed of a
matrix product. The gradient of tap (i, j) is the product of the padded input, shifted by i rows and
j pixels, and the gradient of the output. On a padded grid stored pixel by pixel every shift is a
plain offset, so nothing is gathered.

An upsampled image contains each pixel four times, so its 3x3 convolution sees only 2x2 pixels of
the small image at a time: four 2x2 convolutions, one per corner, with less than half the work.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

# multiplications: below this, the library's gradient is as fast (measured with AVX2)
WORTHWHILE = 200_000_000
# which of a filter's three taps go to each of two small pixels, for the first and second corner
CORNERS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d` with a 3x3 kernel, stride 1 and padding 1; same parameters, same output."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return convolve(input, self.weight, self.bias)

    def within(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H + 2, W); its first and last rows replace the padding."""
        return F.conv2d(x, self.weight, self.bias, padding=(0, 1))


class UpsampleConv3x3(nn.Conv2d):
    """Nearest upsampling by two, then a 3x3 `nn.Conv2d` with the same parameters."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        if eager_fp32_on_cpu(input, self.weight):
            return from_corners(convolve(input, *self.corners()))
        return self.plain(input)

    def plain(self, input: Tensor) -> Tensor:
        """The same, with the whole upsampled image in memory."""
        return super().forward(upsample_nearest(input))

    def corners(self) -> tuple[Tensor, Tensor]:
        """Weight (4 C, C, 2, 2) and bias (4 C,) of the small image's convolution."""
        assert self.bias is not None
        return corner_weights(self.weight), self.bias.repeat(4)


def upsample_nearest(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution with stride 1, padding 1 and a kernel of 2x2 or 3x3."""
    if _gains(x, weight):
        return _Products.apply(x, weight, bias)  # type: ignore[no-any-return]
    return F.conv2d(x, weight, bias, padding=1)


def _gains(x: Tensor, weight: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and x.numel() // x.shape[1] * weight.numel() >= WORTHWHILE
        and eager_fp32_on_cpu(x, weight)
    )


def eager_fp32_on_cpu(*tensors: Tensor) -> bool:
    """Whether operations on these run eagerly, on the CPU and in fp32: neither traced nor cast."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and not (
        torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing()
    )


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), (x, weight) = grad_outputs, ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(list(x.shape), weight, grad, padding=1)
        grad_bias = grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, weight_gradient(x, grad), grad_bias


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient (C_out, C_in, k, k) of the weight of `convolve`.

    For input (B, C, H, W) the output gradient is as high and wide for k = 3, one more for k = 2.

    On the grid, one zero pixel follows each row and one zero row each image. They also pad the next
    row and image, and the space between images is multiplied by zero gradients.
    """
    height, width = x.shape[2:]
    row, taps = width + 1, 3 - (grad.shape[2] - height)
    pixels = _on_grid(x, height + 1, row, around=row + 1)
    errors = _on_grid(grad, height + 1, row)
    out = x.new_empty(taps, taps, x.shape[1], grad.shape[1])
    for i in range(taps):
        for j in range(taps):
            start = i * row + j
            torch.mm(pixels[start : start + len(errors)].T, errors, out=out[i, j])
    return out.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _on_grid(x: Tensor, rows: int, row: int, around: int = 0) -> Tensor:
    """Images (B, C, H, W) at the top left of zeros (B, rows, row): (around + ... + around, C)."""
    batch, channels, height, width = x.shape
    flat = x.new_empty(batch * rows * row + 2 * around, channels)
    flat[:around] = flat[len(flat) - around :] = 0
    grid = flat[around : len(flat) - around].view(batch, rows, row, channels)
    grid[:, :height, :width] = x.permute(0, 2, 3, 1)
    grid[:, height:] = 0
    grid[:, :, width:] = 0
    return flat


def corner_weights(weight: Tensor) -> Tensor:
    """Convert (C_out, C, 3, 3) to one filter of the four corners, each (C_out, C, 2, 2).

    Corners are in the order of pixels: (4 C_out, C, 2, 2), channels last.
    """
    taps = weight.new_tensor(CORNERS)
    corners = torch.einsum("aki,blj,ocij->aboklc", taps, taps, weight)
    return corners.flatten(0, 2).permute(0, 3, 1, 2)


def from_corners(corners: Tensor) -> Tensor:
    """The image from `interleave`, with gradients."""
    return _Interleaved.apply(corners)  # type: ignore[no-any-return]


def interleave(corners: Tensor, image: Tensor) -> None:
    """Write corners (B, 4 C, H + 1, W + 1) to the image (B, C, 2 H, 2 W), both channels last.

    Pixel (y, x) of corner (a, b) belongs at (2 (y - a) + a, 2 (x - b) + b), or nowhere.
    """
    pixels = _strided_pixels(corners.contiguous(memory_format=torch.channels_last))
    image.permute(0, 2, 3, 1).view(pixels.shape).copy_(pixels)


class _Interleaved(torch.autograd.Function):
    """One strided copy in each direction."""

    @staticmethod
    def forward(ctx: Any, corners: Tensor) -> Tensor:
        ctx.shape = corners.shape
        batch, channels, rows, row = corners.shape
        image = corners.new_empty(batch, 2 * (rows - 1), 2 * (row - 1), channels // 4)
        image = image.permute(0, 3, 1, 2)
        interleave(corners, image)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        corners = grad.new_zeros(ctx.shape).contiguous(memory_format=torch.channels_last)
        pixels = _strided_pixels(corners)
        pixels.copy_(grad.permute(0, 2, 3, 1).reshape(pixels.shape))
        return corners


def _strided_pixels(corners: Tensor) -> Tensor:
    """A view (B, H, 2, W, 2, C) of the corners in the order of the image's pixels."""
    batch, channels, rows, row = corners.shape
    width, line = channels // 4, row * channels
    size = (batch, rows - 1, 2, row - 1, 2, width)
    strides = (rows * line, line, line + 2 * width, channels, channels + width, 1)
    return corners.as_strided(size, strides)
