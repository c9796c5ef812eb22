"""The layers of a Matryoshka UNet in PyTorch, channels first.

Attribute names match Apple's published checkpoints, so a state dict loads strictly.
Sources: Gu et al. 2023 (arXiv:2310.15111) for the network, Perez et al. 2018 (arXiv:1709.07871)
for the modulation by time (FiLM).
"""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.config.network import ATTENTION_GROUPS, ATTENTION_HEADS, TEMPORAL_HEAD_WIDTH
from mdm_apple.torch.cpu import strips
from mdm_apple.torch.cpu.conv import Conv3x3, upsample_nearest
from mdm_apple.torch.cpu.norm import normalize, normalize_silu
from mdm_apple.torch.dropout import Dropout

KeysValues = tuple[Tensor, Tensor]  # both (B, heads, L, head width)

Layer = TypeVar("Layer", bound=nn.Module)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias at zero: a residual branch that starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Sine then cosine of `values` (B,) at width/2 frequencies: (B, width), always fp32.

    The exponent is k / (width / 2), not k / (width / 2 - 1) as in some other code.
    """
    half = width // 2
    steps = torch.arange(half, device=values.device, dtype=torch.float32)
    angles = values.float()[:, None] * torch.exp(steps * (-math.log(10_000.0) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embed_scalar(values: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Sinusoid, Linear, SiLU, Linear, always in fp32: (B,) to (B, D)."""
    with torch.autocast(values.device.type, enabled=False):
        hidden = F.silu(_linear_fp32(first, sinusoid(values, first.in_features)))
        return _linear_fp32(second, hidden)


def _linear_fp32(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())


class ResNet(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time embedding (FiLM)."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = Conv3x3(c_in, c_out)
        self.time_layer = nn.Linear(time_dim, 2 * c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.dropout = Dropout(dropout)
        self.conv2 = zeroed(Conv3x3(c_out, c_out))
        if c_in != c_out:
            self.conv3 = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor, skip: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), temb (B, D) or one row for several frames -> (B, C_out, H, W).

        skip: the last channels of the input, if they are not in x.
        """
        parts = (x,) if skip is None else (x, skip)
        film = self.time_layer(F.silu(temb).to(self.time_layer.weight.dtype))
        if len(film) != len(x):  # video: every frame of a sample shares its row
            film = film.repeat_interleave(len(x) // len(film), dim=0)
        if not self.training and strips.worthwhile(*parts) and strips.can_divide(self):
            return strips.residual(self, parts, film)
        x = x if skip is None else torch.cat(parts, dim=1)
        h = self.conv1(normalize_silu(self.norm1, x))
        h = normalize_silu(self.norm2, h, film)
        h = self.conv2(self.dropout(h, len(temb)))
        shortcut = self.conv3(x) if hasattr(self, "conv3") else x
        return shortcut + h if torch.is_grad_enabled() else h.add_(shortcut)


class Attention(nn.Module):
    """Self-attention over pixels and cross-attention to text with the same queries, then an FFN."""

    def __init__(self, channels: int, text_width: int | None, ffn: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(ATTENTION_GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        if text_width:
            self.norm_cond = nn.LayerNorm(text_width)
            self.kv_cond = nn.Linear(text_width, 2 * channels)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))
        if ffn:
            self.ffn = nn.Sequential(
                nn.GroupNorm(ATTENTION_GROUPS, channels),
                nn.Conv2d(channels, 4 * channels, 1),
                nn.GELU(),
                zeroed(nn.Conv2d(4 * channels, channels, 1)),
            )

    def keys_values(self, features: Tensor, mask: Tensor | None) -> KeysValues:
        """Cross-attention keys and values of text features (B, L, width); they ignore the timestep.

        Values of masked tokens are zeroed, so that a fully masked prompt contributes nothing.
        """
        features = self.norm_cond(features).to(self.kv_cond.weight.dtype)
        k, v = self.kv_cond(features).chunk(2, dim=-1)
        if mask is not None:
            v = v * mask[:, :, None].to(v.dtype)
        return split_heads(k, ATTENTION_HEADS), split_heads(v, ATTENTION_HEADS)

    def forward(self, x: Tensor, text: KeysValues | None, mask: Tensor | None) -> Tensor:
        """x (B, C, H, W); text from `keys_values`; mask (B, 1, 1, L), True where attended."""
        batch = len(x)
        rows = pointwise(self.qkv, as_rows(normalize(self.norm, x)))
        q, k, v = (split_heads(part, ATTENTION_HEADS) for part in rows.chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v)
        if text is not None:
            k, v = (_per_frame(part, batch) for part in text)
            mask = None if mask is None else _per_frame(mask, batch)
            out = out + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + as_image(pointwise(self.proj_out, merge_heads(out)), x)
        return x + self.feed_forward(x) if hasattr(self, "ffn") else x

    def feed_forward(self, x: Tensor) -> Tensor:
        norm, widen, activation, narrow = cast(
            "tuple[nn.GroupNorm, nn.Module, nn.Module, nn.Module]", tuple(self.ffn)
        )
        hidden = activation(pointwise(widen, as_rows(normalize(norm, x))))
        return as_image(pointwise(narrow, hidden), x)


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, HW, C): a view where x is channels last."""
    return x.flatten(2).transpose(1, 2)


def as_image(rows: Tensor, like: Tensor) -> Tensor:
    """(B, HW, C) to the (B, C, H, W) of `like`, channels last in memory."""
    return rows.transpose(1, 2).unflatten(2, like.shape[2:])


def pointwise(conv: nn.Module, rows: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product over pixels: (B, HW, C) to (B, HW, C_out)."""
    if not isinstance(conv, nn.Conv2d):  # packed for inference: takes rows directly
        return conv(rows)
    return F.linear(rows, conv.weight[:, :, 0, 0], conv.bias)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, C) to (B, heads, L, C / heads); a head is a contiguous group of channels."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, L, width) to (B, L, heads * width)."""
    return x.transpose(1, 2).flatten(2)


def _per_frame(x: Tensor, rows: int) -> Tensor:
    return x if len(x) == rows else x.repeat_interleave(rows // len(x), dim=0)


class SelfAttention1D(nn.Module):
    """Self-attention over a sequence: text tokens, or the frames of one pixel."""

    def __init__(self, channels: int, heads: int, rotary: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = zeroed(nn.Linear(channels, channels))
        if rotary:
            self.pos_emb = RotaryEmbedding(channels // heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, C); mask (B, L), nonzero where a token may be attended."""
        q, k, v = (split_heads(p, self.heads) for p in self.qkv(self.norm(x)).chunk(3, dim=-1))
        if hasattr(self, "pos_emb"):
            q, k = self.pos_emb(q), self.pos_emb(k)
        attend = None
        if mask is not None:
            mask = mask.bool()
            v = v * mask[:, None, :, None].to(v.dtype)
            attend = attendable(mask)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return x + self.proj_out(merge_heads(out))


def attendable(mask: Tensor) -> Tensor:
    """Boolean (B, 1, 1, L) for attention from a boolean (B, L).

    A fully masked row attends everywhere instead: softmax stays finite, and the result is zero
    because the caller zeroes masked values.
    """
    return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]


class RotaryEmbedding(nn.Module):
    """Rotary positions over neighbouring pairs of channels (Su et al. 2021, arXiv:2104.09864)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        self.freqs = nn.Parameter(10_000.0**-exponents, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, heads, T, width), rotated by its index along T."""
        positions = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
        angles = positions[:, None] * self.freqs.float()
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class MLP(nn.Module):
    """Residual LayerNorm, Linear, GELU, Linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            zeroed(nn.Linear(4 * channels, channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class TextHeadLayer(nn.Module):
    """One transformer layer over the projected text features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = SelfAttention1D(width, ATTENTION_HEADS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.mlp(self.attn(x, mask))


class FrameDownsample(nn.Conv1d):
    """Half the frames, by a convolution over them with stride two."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2, padding=1)

    def forward(self, input: Tensor, samples: int = 1) -> Tensor:
        """(B T, C, H, W), with the T frames of each of the `samples` = B in sequence."""
        return as_frames(super().forward(as_lines(input, samples)), input, samples)


class FrameUpsample(nn.Conv1d):
    """Each frame twice, then a convolution over frames."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, input: Tensor, samples: int = 1) -> Tensor:
        """(B T, C, H, W), with the T frames of each of the `samples` = B in sequence."""
        lines = as_lines(input, samples).repeat_interleave(2, dim=2)
        return as_frames(super().forward(lines), input, samples)


def as_lines(h: Tensor, samples: int) -> Tensor:
    """(B T, C, H, W) to (B H W, C, T): a line of frames for each pixel."""
    frames = h.unflatten(0, (samples, -1)).permute(0, 3, 4, 2, 1)  # (B, H, W, C, T)
    return frames.reshape(-1, h.shape[1], frames.shape[-1])


def as_frames(lines: Tensor, like: Tensor, samples: int) -> Tensor:
    """The inverse of `as_lines`, for any number of frames; C, H and W are those of `like`."""
    _, channels, height, width = like.shape
    h = lines.reshape(samples, height, width, channels, -1).permute(0, 4, 3, 1, 2)
    return h.reshape(-1, channels, height, width)


class TemporalAttention(nn.Module):
    """Attention between frames at half the side of each frame, as a residual branch."""

    def __init__(self, channels: int, rotary: bool) -> None:
        super().__init__()
        self.down_conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.up_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.attn = SelfAttention1D(channels, channels // TEMPORAL_HEAD_WIDTH, rotary)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """x (B T, C, H, W), with the T frames of each of the `samples` = B in sequence."""
        h = self.down_conv(x)
        rows, channels, height, width = h.shape
        frames = rows // samples
        tokens = h.unflatten(0, (samples, frames)).permute(0, 3, 4, 1, 2)  # (B, H, W, T, C)
        tokens = self.mlp(self.attn(tokens.reshape(-1, frames, channels)))
        h = tokens.reshape(samples, height, width, frames, channels).permute(0, 3, 4, 1, 2)
        return x + self.up_conv(upsample_nearest(h.reshape(rows, channels, height, width)))
