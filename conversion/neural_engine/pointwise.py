"""Linear layers as convolutions."""

from __future__ import annotations

from torch import nn


def pointwise(linear: nn.Linear) -> nn.Conv2d:
    """A linear layer as a 1x1 convolution that shares its weights instead of copying them."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    conv.weight = nn.Parameter(linear.weight[:, :, None, None], requires_grad=False)
    conv.bias = linear.bias
    return conv
