"""3x3 convolutions by Winograd's F(2x2, 3x3), for inference with many channels.

Every 2x2 square of the output comes from a 4x4 square of the input through 16 products per pair of
channels instead of 36, so a wide layer takes little more than half the time. Below WORTHWHILE
channels, the extra additions cost as much as the products save. Rounding errors are smaller than
in the direct sum, which is nine times as long.
Source: Lavin & Gray 2016 (arXiv:1509.09308), section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WORTHWHILE = 512  # channels; at 256 the direct convolution is faster (measured with AVX2)
# rows: the weights of a filter's three taps in each of the four products
FILTER = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with stride 1 and padding 1; its weights grow by 16/9."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._weight = transform_filter(conv.weight.detach())
        self._bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C_out, H, W), channels last in memory."""
        height, width = x.shape[2:]
        squares = transform_input(x)
        products = torch.bmm(squares.flatten(0, 1).flatten(1, 3), self._weight)
        products = products.view(*squares.shape[:-1], -1)
        return transform_output(products, self._bias)[:, :, :height, :width]


def transform_filter(weight: Tensor) -> Tensor:
    """(C_out, C, 3, 3) to one matrix per product: (16, C, C_out)."""
    taps = torch.tensor(FILTER, dtype=torch.float64)
    rows = torch.einsum("ai,ocij->aocj", taps, weight.double())
    both = torch.einsum("bj,aocj->abco", taps, rows)
    return both.to(weight.dtype).flatten(0, 1).contiguous()


def transform_input(x: Tensor) -> Tensor:
    """(B, C, H, W) to the inputs of each product, per square: (4, 4, B, ceil H/2, ceil W/2, C)."""
    batch, channels, height, width = x.shape
    tall, wide = -(-height // 2), -(-width // 2)
    padded = x.new_zeros(batch, 2 * tall + 2, 2 * wide + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    rows = x.new_empty(4, batch, tall, 2 * wide + 2, channels)
    _combine([padded[:, k : k + 2 * tall - 1 : 2] for k in range(4)], list(rows))
    squares = x.new_empty(4, 4, batch, tall, wide, channels)
    columns = [rows[:, :, :, k : k + 2 * wide - 1 : 2] for k in range(4)]
    _combine(columns, [squares[:, k] for k in range(4)])
    return squares


def _combine(lines: list[Tensor], out: list[Tensor]) -> None:
    torch.sub(lines[0], lines[2], out=out[0])
    torch.add(lines[1], lines[2], out=out[1])
    torch.sub(lines[2], lines[1], out=out[2])
    torch.sub(lines[1], lines[3], out=out[3])


def transform_output(products: Tensor, bias: Tensor | None) -> Tensor:
    """(4, 4, B, tall, wide, C) to the image (B, C, 2 tall, 2 wide)."""
    _, _, batch, tall, wide, channels = products.shape
    image = products.new_empty(batch, tall, 2, wide, 2, channels)
    first = products[0].add_(products[1]).add_(products[2])
    second = products[1].sub_(products[2]).sub_(products[3])
    for i, row in enumerate((first, second)):
        even = row[0].add_(row[1]).add_(row[2])
        odd = row[1].sub_(row[2]).sub_(row[3])
        for j, pixels in enumerate((even, odd)):
            image[:, :, i, :, j] = pixels if bias is None else pixels.add_(bias)
    return image.view(batch, 2 * tall, 2 * wide, channels).permute(0, 3, 1, 2)
