"""The layers of a Matryoshka UNet in MLX, channels last.

Attribute names match torch/layers.py and Apple's published checkpoints. 1x1 convolutions are Linear
layers, so that they can be quantized. Lists replace nn.Sequential, whose MLX counterpart would add
a part to every name. Norms have fp32 weights and keep the number type of their input; a layer casts
its input from fp32 to its own type.
Sources: Gu et al. 2023 (arXiv:2310.15111) for the network, Perez et al. 2018 (arXiv:1709.07871)
for the modulation by time (FiLM).
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from mdm_apple.config.network import ATTENTION_GROUPS, ATTENTION_HEADS, TEMPORAL_HEAD_WIDTH
from mdm_apple.mlx.dropout import Dropout

KeysValues = tuple[mx.array, mx.array]  # both (B, heads, L, head width)

Layer = TypeVar("Layer", bound=nn.Module)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias at zero: a residual branch that starts as the identity."""
    layer.update(tree_map(mx.zeros_like, layer.parameters()))
    return layer


class GroupNorm(nn.GroupNorm):
    """PyTorch's grouping; statistics in fp32 whatever the input's number type."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Statistics in fp32 whatever the input's number type."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(x.dtype)


class Conv2d(nn.Conv2d):
    """A padded 3x3 convolution with PyTorch's initial bias."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, 3, stride=stride, padding=1)
        bound = (9 * c_in) ** -0.5
        self.bias = mx.random.uniform(-bound, bound, (c_out,))


class Conv1d(nn.Conv1d):
    """A padded convolution of three taps with PyTorch's initial bias."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, 3, stride=stride, padding=1)
        bound = (3 * c_in) ** -0.5
        self.bias = mx.random.uniform(-bound, bound, (c_out,))


def number_type(layer: nn.Module) -> mx.Dtype:
    """The type in which a layer computes; for a quantized layer, the type of its scales."""
    return (layer["scales"] if "scales" in layer else layer["weight"]).dtype


def sinusoid(values: mx.array, width: int) -> mx.array:
    """Sine then cosine of `values` (B,) at width/2 frequencies: (B, width), always fp32.

    The exponent is k / (width / 2), not k / (width / 2 - 1) as in some other code.
    """
    half = width // 2
    steps = mx.arange(half, dtype=mx.float32)
    angles = values.astype(mx.float32)[:, None] * mx.exp(steps * (-math.log(10_000.0) / half))
    return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=1)


def embed_scalar(values: mx.array, first: nn.Linear, second: nn.Linear) -> mx.array:
    """Sinusoid, Linear, SiLU, Linear: (B,) to (B, D). These layers are fp32 in every mode."""
    return second(nn.silu(first(sinusoid(values, first.weight.shape[1]))))


def upsample_nearest(x: mx.array) -> mx.array:
    """(B, H, W, C) to (B, 2H, 2W, C)."""
    b, h, w, c = x.shape
    x = mx.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


class ResNet(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time embedding (FiLM)."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in)
        self.conv1 = Conv2d(c_in, c_out)
        self.time_layer = nn.Linear(time_dim, 2 * c_out)
        self.norm2 = GroupNorm(groups, c_out)
        self.dropout = Dropout(dropout)
        self.conv2 = zeroed(Conv2d(c_out, c_out))
        if c_in != c_out:
            self.conv3 = nn.Linear(c_in, c_out)

    def __call__(self, x: mx.array, temb: mx.array, key: mx.array | None = None) -> mx.array:
        """x (B, H, W, C_in), temb (B, D) or one row for several frames -> (B, H, W, C_out)."""
        h = self.conv1(nn.silu(self.norm1(x)))
        film = self.time_layer(nn.silu(temb).astype(number_type(self.time_layer)))
        if len(film) != len(h):  # video: every frame of a sample shares its row
            film = mx.repeat(film, len(h) // len(film), axis=0)
        scale, shift = mx.split(film[:, None, None, :], 2, axis=-1)
        h = nn.silu(self.norm2(h) * (1 + scale) + shift)
        h = self.conv2(self.dropout(h, key, len(temb)))
        shortcut = self.conv3(x) if "conv3" in self else x
        return shortcut + h


class Attention(nn.Module):
    """Self-attention over pixels and cross-attention to text with the same queries, then an FFN."""

    def __init__(self, channels: int, text_width: int | None, ffn: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(ATTENTION_GROUPS, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        if text_width:
            self.norm_cond = LayerNorm(text_width)
            self.kv_cond = nn.Linear(text_width, 2 * channels)
        self.proj_out = zeroed(nn.Linear(channels, channels))
        if ffn:
            self.ffn: list[Any] = [
                GroupNorm(ATTENTION_GROUPS, channels),
                nn.Linear(channels, 4 * channels),
                nn.GELU(),
                zeroed(nn.Linear(4 * channels, channels)),
            ]

    def keys_values(self, features: mx.array, mask: mx.array | None) -> KeysValues:
        """Cross-attention keys and values of text features (B, L, width); they ignore the timestep.

        Values of masked tokens are zeroed, so that a fully masked prompt contributes nothing.
        """
        features = self.norm_cond(features).astype(number_type(self.kv_cond))
        k, v = mx.split(self.kv_cond(features), 2, axis=-1)
        if mask is not None:
            v = v * mask[:, :, None].astype(v.dtype)
        return split_heads(k, ATTENTION_HEADS), split_heads(v, ATTENTION_HEADS)

    def __call__(self, x: mx.array, text: KeysValues | None, mask: mx.array | None) -> mx.array:
        """x (B, H, W, C); text from `keys_values`; mask (B, 1, 1, L), True where attended."""
        batch = len(x)
        rows = self.qkv(as_rows(self.norm(x)))
        q, k, v = (split_heads(part, ATTENTION_HEADS) for part in mx.split(rows, 3, axis=-1))
        out = attend(q, k, v)
        if text is not None:
            k, v = (_per_frame(part, batch) for part in text)
            mask = None if mask is None else _per_frame(mask, batch)
            out = out + attend(q, k, v, mask)
        x = x + as_image(self.proj_out(merge_heads(out)), x)
        return x + self.feed_forward(x) if "ffn" in self else x

    def feed_forward(self, x: mx.array) -> mx.array:
        norm, widen, activation, narrow = self.ffn
        return as_image(narrow(activation(widen(as_rows(norm(x))))), x)


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
    """Fused softmax attention over (B, heads, L, width)."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


def as_rows(x: mx.array) -> mx.array:
    """(B, H, W, C) to (B, HW, C), without a copy."""
    return x.flatten(1, 2)


def as_image(rows: mx.array, like: mx.array) -> mx.array:
    """(B, HW, C) to the (B, H, W, C) of `like`."""
    return mx.unflatten(rows, 1, like.shape[1:3])


def split_heads(x: mx.array, heads: int) -> mx.array:
    """(B, L, C) to (B, heads, L, C / heads); a head is a contiguous group of channels."""
    return mx.unflatten(x, -1, (heads, -1)).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """(B, heads, L, width) to (B, L, heads * width)."""
    return x.transpose(0, 2, 1, 3).flatten(2)


def _per_frame(x: mx.array, rows: int) -> mx.array:
    return x if len(x) == rows else mx.repeat(x, rows // len(x), axis=0)


class SelfAttention1D(nn.Module):
    """Self-attention over a sequence: text tokens, or the frames of one pixel."""

    def __init__(self, channels: int, heads: int, rotary: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = zeroed(nn.Linear(channels, channels))
        if rotary:
            self.pos_emb = RotaryEmbedding(channels // heads)

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """x (B, L, C); mask (B, L), nonzero where a token may be attended."""
        parts = mx.split(self.qkv(self.norm(x)), 3, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in parts)
        if "pos_emb" in self:
            q, k = self.pos_emb(q), self.pos_emb(k)
        allowed = None
        if mask is not None:
            mask = mask != 0
            v = v * mask[:, None, :, None].astype(v.dtype)
            allowed = attendable(mask)
        return x + self.proj_out(merge_heads(attend(q, k, v, allowed)))


def attendable(mask: mx.array) -> mx.array:
    """Boolean (B, 1, 1, L) for attention from a boolean (B, L).

    A fully masked row attends everywhere instead: softmax stays finite, and the result is zero
    because the caller zeroes masked values.
    """
    return (mask | ~mask.any(axis=1, keepdims=True))[:, None, None, :]


class RotaryEmbedding(nn.Module):
    """Rotary positions over neighbouring pairs of channels (Su et al. 2021, arXiv:2104.09864)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents = mx.arange(0, width, 2, dtype=mx.float32) / width
        self.freqs = 10_000.0**-exponents
        self.freeze(keys=["freqs"])

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, heads, T, width), rotated by its index along T."""
        positions = mx.arange(x.shape[2], dtype=mx.float32)
        angles = positions[:, None] * self.freqs.astype(mx.float32)
        cos, sin = mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)
        a, b = x[..., 0::2], x[..., 1::2]
        return mx.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).flatten(-2)


class MLP(nn.Module):
    """Residual LayerNorm, Linear, GELU, Linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main: list[Any] = [
            LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            zeroed(nn.Linear(4 * channels, channels)),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        h = x
        for layer in self.main:
            h = layer(h)
        return x + h


class TextHeadLayer(nn.Module):
    """One transformer layer over the projected text features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = SelfAttention1D(width, ATTENTION_HEADS)
        self.mlp = MLP(width)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        return self.mlp(self.attn(x, mask))


class TemporalAttention(nn.Module):
    """Attention between frames at half the side of each frame, as a residual branch."""

    def __init__(self, channels: int, rotary: bool) -> None:
        super().__init__()
        self.down_conv = Conv2d(channels, channels, stride=2)
        self.up_conv = Conv2d(channels, channels)
        self.attn = SelfAttention1D(channels, channels // TEMPORAL_HEAD_WIDTH, rotary)
        self.mlp = MLP(channels)

    def __call__(self, x: mx.array, samples: int) -> mx.array:
        """x (B T, H, W, C), with the T frames of each of the `samples` = B in sequence."""
        h = self.down_conv(x)
        rows, height, width, channels = h.shape
        frames = rows // samples
        tokens = mx.unflatten(h, 0, (samples, frames)).transpose(0, 2, 3, 1, 4)  # (B, H, W, T, C)
        tokens = self.mlp(self.attn(tokens.reshape(-1, frames, channels)))
        h = tokens.reshape(samples, height, width, frames, channels).transpose(0, 3, 1, 2, 4)
        return x + self.up_conv(upsample_nearest(h.reshape(rows, height, width, channels)))
