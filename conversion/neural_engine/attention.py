"""Attention on (B, C, 1, S): per head, a limited number of queries at a time."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mdm_apple.config.network import ATTENTION_HEADS
from mdm_apple.torch import layers
from mdm_apple.torch.layers import KeysValues

from .norms import GroupNorm

QUERIES_AT_ONCE = 512  # keeps a head's keys x queries near the size of the on-chip memory


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Softmax attention; logits are not scaled here.

    Args:
        q: (B, C, 1, Q). k: (B, K, 1, C), transposed once for all heads. v: (B, C, 1, K).
        mask: (B, K, 1, 1), added to the logits, or None.

    Returns (B, C, 1, Q). The last chunk of queries may be shorter than the others.
    """
    width = q.shape[1] // heads
    keys, values = k.split(width, dim=3), v.split(width, dim=1)
    chunks: list[Tensor] = []
    for some in query_chunks(q):
        out: list[Tensor] = []
        for q_head, k_head, v_head in zip(some.split(width, dim=1), keys, values, strict=True):
            logits = torch.einsum("bkhc,bchq->bkhq", k_head, q_head)
            if mask is not None:
                logits = logits + mask
            weights = torch.softmax(logits, dim=1)
            out.append(torch.einsum("bchk,bkhq->bchq", v_head, weights))
        chunks.append(torch.cat(out, dim=1))
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=3)


def query_chunks(q: Tensor) -> tuple[Tensor, ...]:
    """Queries (B, C, 1, Q) in chunks of QUERIES_AT_ONCE; the last one holds the rest."""
    # coremltools cannot translate a split into a single piece
    return q.split(QUERIES_AT_ONCE, dim=3) if q.shape[3] > QUERIES_AT_ONCE else (q,)


class Attention(nn.Module):
    """`layers.Attention` with the same weights; takes text from `engine_keys_values`."""

    def __init__(self, layer: layers.Attention) -> None:
        super().__init__()
        self.norm = GroupNorm(layer.norm)
        self.qkv, self.proj_out = layer.qkv, layer.proj_out
        if hasattr(layer, "ffn"):
            norm, widen, activation, narrow = layer.ffn
            self.ffn = nn.Sequential(GroupNorm(cast(nn.GroupNorm, norm)), widen, activation, narrow)

    def forward(self, x: Tensor, text: KeysValues | None, mask: Tensor | None) -> Tensor:
        """x (B, C, H, W); text: keys (B, L, 1, C), values (B, C, 1, L); mask (B, L, 1, 1).

        Text and mask may have one row for several frames.
        """
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3 * channels, 1, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        q = q * (channels // ATTENTION_HEADS) ** -0.5
        out = attend(q, k.transpose(1, 3), v, None, ATTENTION_HEADS)
        if text is not None:
            k, v = (_per_frame(part, batch) for part in text)
            mask = None if mask is None else _per_frame(mask, batch)
            out = out + attend(q, k, v, mask, ATTENTION_HEADS)
        x = x + self.proj_out(out.reshape(batch, channels, height, width))
        return x + self.ffn(x) if hasattr(self, "ffn") else x


def _per_frame(x: Tensor, rows: int) -> Tensor:
    if len(x) == rows:
        return x
    if len(x) == 1:  # as in packages, where a repetition would take a fifth axis
        return x.expand(rows, -1, -1, -1)
    return x.repeat_interleave(rows // len(x), dim=0)


def engine_keys_values(keys: Tensor, values: Tensor) -> KeysValues:
    """From (B, heads, L, width) each to keys (B, L, 1, C) and values (B, C, 1, L)."""
    return (
        keys.transpose(1, 2).flatten(2)[:, :, None],
        values.transpose(2, 3).flatten(1, 2)[:, :, None],
    )


def engine_mask(additive: Tensor) -> Tensor:
    """From (B, 1, 1, L) to (B, L, 1, 1)."""
    return additive.transpose(1, 3)
