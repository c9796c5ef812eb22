"""Large images in strips of rows, for inference on a CPU.

At 1024 px an activation has 128 MiB. Run one operation at a time, a residual block moves a dozen of
them through memory. Here a strip goes through norm, modulation, SiLU and convolution while it is
in the cache; only the input, the first convolution's output and the result exist as a whole. Hooks
on the layers inside such a block do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.torch.cpu.conv import eager_fp32_on_cpu, interleave

WORTHWHILE = 1 << 22  # numbers in one image, 16 MiB: smaller images stay in a cache anyway
STRIP = 1 << 20  # numbers processed at a time


@runtime_checkable
class RowConv(Protocol):
    """A 3x3 convolution that can take the rows above and below from its caller."""

    def within(self, x: Tensor) -> Tensor:
        """(B, C, H + 2, W) to (B, C_out, H, W)."""
        ...


class Block(Protocol):
    """The parts of `layers.ResNet`, and conv3 if the number of channels changes."""

    @property
    def norm1(self) -> nn.GroupNorm: ...
    @property
    def norm2(self) -> nn.GroupNorm: ...
    @property
    def conv1(self) -> nn.Module: ...
    @property
    def conv2(self) -> nn.Module: ...


def worthwhile(x: Tensor, *others: Tensor, growth: int = 1) -> bool:
    """Whether an image, with others concatenated to its channels, is large and of the right kind.

    growth: factor by which it is about to grow.
    """
    parts = (x, *others)
    return (
        not torch.is_grad_enabled()
        and growth * sum(part[0].numel() for part in parts) >= WORTHWHILE
        and all(part.is_contiguous(memory_format=torch.channels_last) for part in parts)
        and eager_fp32_on_cpu(*parts)
    )


def can_divide(block: Block) -> bool:
    """Whether the block's convolutions work on strips."""
    return isinstance(block.conv1, RowConv) and isinstance(block.conv2, RowConv)


def residual(block: Block, parts: Sequence[Tensor], film: Tensor) -> Tensor:
    """A residual block on images concatenated in its channels; see `layers.ResNet`."""
    batch, _, height, width = parts[0].shape
    out = _empty_image(batch, block.norm2.num_channels, height, width)
    for b in range(batch):
        _residual_of_one(block, [p[b : b + 1] for p in parts], film[b], out[b : b + 1])
    return out


def normalized_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the group norm of x."""
    out = _empty_image(*x.shape)
    for b in range(len(x)):
        image, result = x[b : b + 1], out[b : b + 1]
        slope, level = _affine(norm, _sums(image), image)
        for top, bottom in _strips(image):
            _activate(image[:, :, top:bottom], slope, level, out=result[:, :, top:bottom])
    return out


def upsampled(corners: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """x (B, C, H, W) upsampled by two and convolved, (B, C, 2 H, 2 W); see `conv`.

    corners: the small image's convolution of a strip with the rows around it: (1, C, h + 2, W) to
    (1, 4 C, h + 1, W + 1).
    """
    batch, channels, height, width = x.shape
    out = _empty_image(batch, channels, 2 * height, 2 * width)
    for b in range(batch):
        for top, bottom in _strips(out[b : b + 1, :, ::2]):
            low, high = max(top - 1, 0), min(bottom + 1, height)
            strip = corners(_rimmed(x[b : b + 1, :, low:high], top - low, high - bottom))
            interleave(strip, out[b : b + 1, :, 2 * top : 2 * bottom])
    return out


def _residual_of_one(block: Block, parts: list[Tensor], film: Tensor, out: Tensor) -> None:
    conv1, conv2, conv3 = block.conv1, block.conv2, getattr(block, "conv3", None)
    assert isinstance(conv1, RowConv)
    assert isinstance(conv2, RowConv)
    height = out.shape[2]

    # 1. the first convolution's output, summed as it is computed; and the shortcut
    slope, level = _affine(block.norm1, torch.cat([_sums(part) for part in parts], dim=1), out)
    hidden = _empty_image(*out.shape)
    sums = out.new_zeros(2, out.shape[1], dtype=torch.float64)
    for top, bottom in _strips(*parts):
        low, high = max(top - 1, 0), min(bottom + 1, height)
        x = _beside([part[:, :, low:high] for part in parts])
        h = conv1.within(_rimmed(_activate(x, slope, level), top - low, high - bottom))
        hidden[:, :, top:bottom] = h
        sums += _sums_of_strip(h)
        x = x[:, :, top - low : bottom - low]
        out[:, :, top:bottom] = x if conv3 is None else conv3(x)

    # 2. the second convolution's output, added to the shortcut
    slope, level = _affine(block.norm2, sums, out, film)
    for top, bottom in _strips(hidden):
        low, high = max(top - 1, 0), min(bottom + 1, height)
        h = _activate(hidden[:, :, low:high], slope, level)
        out[:, :, top:bottom] += conv2.within(_rimmed(h, top - low, high - bottom))


def _strips(*parts: Tensor) -> Iterator[tuple[int, int]]:
    """First row of each strip and the row after its last, for images side by side."""
    height = parts[0].shape[2]
    rows = max(1, STRIP * height // sum(part.numel() for part in parts))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _beside(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _rimmed(x: Tensor, above: int, below: int) -> Tensor:
    """Add a row of zeros above and below, where the image has none."""
    return x if above and below else F.pad(x, (0, 0, 1 - above, 1 - below))


def _activate(x: Tensor, slope: Tensor, level: Tensor, out: Tensor | None = None) -> Tensor:
    """SiLU of x (1, C, H, W) times slope plus level, both (W C,): long loops even if C is small."""
    lines = _lines(x)
    done = torch.addcmul(level, lines, slope, out=None if out is None else _lines(out))
    F.silu(done, inplace=True)
    return done.view(1, x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)


def _affine(
    norm: nn.GroupNorm, sums: Tensor, like: Tensor, film: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Norm and modulation as one slope and one level, both (W C,), from the sums over pixels."""
    height, width = like.shape[2:]
    channels = norm.num_channels // norm.num_groups
    mean, square = sums.unflatten(1, (-1, channels)).mean(dim=2) / (height * width)
    rstd = (square - mean.square()).clamp_min(0).add(norm.eps).rsqrt()
    slope = rstd.repeat_interleave(channels) * norm.weight
    level = norm.bias - mean.repeat_interleave(channels) * slope
    if film is not None:
        scale, shift = film.chunk(2)
        slope, level = slope * (1 + scale), level * (1 + scale) + shift
    return slope.float().repeat(width), level.float().repeat(width)


def _sums(image: Tensor) -> Tensor:
    """Sums of every channel's numbers and of their squares: (2, C), float64."""
    strips = [image[:, :, top:bottom] for top, bottom in _strips(image)]
    return torch.stack([_sums_of_strip(strip) for strip in strips]).sum(dim=0)


def _sums_of_strip(strip: Tensor) -> Tensor:
    lines = _lines(strip)
    both = torch.stack([lines.sum(dim=0), lines.square().sum(dim=0)])
    return both.view(2, strip.shape[3], -1).sum(dim=1, dtype=torch.float64)


def _lines(x: Tensor) -> Tensor:
    """View (1, C, H, W), channels last, as (H, W C)."""
    return x[0].permute(1, 2, 0).flatten(1)


def _empty_image(batch: int, channels: int, height: int, width: int) -> Tensor:
    """(B, C, H, W) in fp32 on the CPU, channels last, uninitialised."""
    out = torch.empty(batch, height, width, channels, dtype=torch.float32, device="cpu")
    return out.permute(0, 3, 1, 2)
