"""Convolutions with weights in oneDNN's own blocked layout, for inference on a CPU.

PyTorch reorders the weights of a convolution on every call. In the deep stages of a large network,
where a weight is far bigger than its image, that costs up to a third of the call. Outputs are equal
bit for bit. The operators are the ones that torch.compile emits for frozen networks. The widest 3x3
convolutions in fp32 use another algorithm (winograd.py).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from mdm_apple.torch.cpu import strips, winograd
from mdm_apple.torch.cpu.conv import Conv3x3, UpsampleConv3x3, from_corners

_PLAIN = ("none", cast("list[Any]", []), "")  # no fused activation
WORTHWHILE = 32  # narrower layers gain nothing


class PackedConv2d(nn.Module):
    """A convolution that reorders its weights at the first call, for the shape of that call.

    Other shapes work too, but slower; the original weights are not kept.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._padding = [int(p) for p in cast("tuple[int, ...]", conv.padding)]
        self._stride, self._dilation = list(conv.stride), list(conv.dilation)
        weight = conv.weight.detach()
        if conv.kernel_size != (1, 1):
            weight = weight.contiguous(memory_format=torch.channels_last)
        self._weight, self._packed = weight, False
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self._padding)

    def within(self, x: Tensor) -> Tensor:
        """Convolve x (B, C, H + 2, W); its first and last rows replace the padding."""
        return self._convolve(x, [0, self._padding[1]])

    def _convolve(self, x: Tensor, padding: list[int]) -> Tensor:
        if not self._packed:
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight,
                padding,
                self._stride,
                self._dilation,
                self._groups,
                list(x.shape),
            )
            self._packed = True
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            self._weight,
            self._bias,
            padding,
            self._stride,
            self._dilation,
            self._groups,
            *_PLAIN,
        )


class PackedUpsample(nn.Module):
    """Upsampling and the convolution after it, computed on the small image (see `conv`)."""

    def __init__(self, conv: UpsampleConv3x3) -> None:
        super().__init__()
        weight, bias = conv.corners()
        corners = nn.Conv2d(weight.shape[1], len(weight), 2, padding=1, device="meta")
        corners.weight, corners.bias = nn.Parameter(weight), nn.Parameter(bias)
        self._corners = PackedConv2d(corners)

    def forward(self, x: Tensor) -> Tensor:
        if strips.worthwhile(x, growth=4):
            return strips.upsampled(self._corners.within, x)
        return from_corners(self._corners(x))


class PackedPointwise(nn.Module):
    """A 1x1 convolution as a matrix product over rows (B, HW, C), packed in the same way."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()[:, :, 0, 0].contiguous()
        self._weight, self._packed = weight, False
        self._bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        if not self._packed:
            batch = rows.shape[0] * rows.shape[1]
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, batch)
            self._packed = True
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, *_PLAIN)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has the operators for this device, and the CPU supports the number type."""
    names = ("_reorder_convolution_weight", "_reorder_linear_weight")
    known = (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
    )
    if dtype == torch.bfloat16:
        return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return known and dtype == torch.float32


def pack(net: nn.Module) -> None:
    """Replace the wide convolutions of a network in place; afterwards it can only run forward."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and min(child.weight.shape[:2]) >= WORTHWHILE:
                setattr(module, name, _packed(child, name))


def give_back() -> None:
    """Return the memory that packing freed to the system, if the C library is glibc.

    It lies between the weights that remain, where the library keeps it.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _packed(conv: nn.Conv2d, name: str) -> nn.Module:
    if isinstance(conv, UpsampleConv3x3):  # in bf16, sums of its weights would be rounded twice
        return PackedUpsample(conv) if conv.weight.dtype == torch.float32 else conv
    if conv.kernel_size == (1, 1) and name != "conv3":  # see layers.pointwise
        return PackedPointwise(conv)
    wide = min(conv.weight.shape[:2]) >= winograd.WORTHWHILE
    if wide and isinstance(conv, Conv3x3) and conv.weight.dtype == torch.float32:
        return winograd.WinogradConv2d(conv)
    return PackedConv2d(conv)
