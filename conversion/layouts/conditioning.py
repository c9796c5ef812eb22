"""Everything that depends only on the prompt, as one network that runs once per prompt.

Input: text features and their mask. Output: the pooled text, the additive mask, and the keys and
values of every cross-attention.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.config.types import Compute
from mdm_apple.torch.layers import TextHeadLayer, merge_heads, split_heads
from mdm_apple.torch.unet import UNet

from ..neural_engine.attention import engine_keys_values, engine_mask
from ..source.model import ModelSource
from .names import ATTENTION_MASK, POOLED, TEXT_FEATURES, TEXT_MASK, TEXT_SEEN
from .parts import MASKED, Part, cross_attention_counts, cross_attention_names


def conditioning_part(source: ModelSource, compute: Compute) -> Part:
    """The part of a network with text. compute: the form in which later packages take text."""
    config = source.config
    assert config.text, "only networks with text are conditioned"
    module = ConditioningNetwork(source.net, compute == "ane", config.shares_padding)
    features = torch.zeros(1, config.text.max_tokens, config.model.innermost.text_dim or 0)
    inputs = {TEXT_FEATURES: features, TEXT_MASK: torch.ones(1, config.text.max_tokens)}
    if module.takes_seen:
        inputs[TEXT_SEEN] = torch.ones(1, config.text.max_tokens)
    return Part(
        "conditioning",
        "prompt",
        module,
        inputs,
        (*module.fixed_outputs, *cross_attention_names(source)),
    )


class ConditioningNetwork(nn.Module):
    """`UNet.condition` with an additive mask and without data-dependent choices."""

    def __init__(self, net: UNet, engine: bool, shares_padding: bool) -> None:
        super().__init__()
        self.net, self.engine = net, engine
        self.core = net.level_modules()[-1]
        counts = sum(sum(blocks) for blocks in cross_attention_counts(net))
        self.masked = self.core.config.masked_cross_attention
        hides = self.masked or shares_padding
        self.takes_seen = shares_padding and bool(counts or self.core.config.num_text_head_layers)
        self.fixed_outputs = (POOLED, ATTENTION_MASK) if hides and counts else (POOLED,)

    def forward(
        self, features: Tensor, mask: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """features (1, L, text_dim), mask and seen (1, L) -> pooled, additive mask, keys, values.

        seen: see `UNet.condition`.
        """
        core = self.core
        h = core.lm_proj(features) if hasattr(core, "lm_proj") else features
        attended = mask if self.masked else seen
        additive = None if attended is None else additive_mask(attended)
        layers = core.lm_head if core.config.num_text_head_layers else ()
        for layer in layers:
            h = _head_layer(cast(TextHeadLayer, layer), h, attended, additive)
        # head layers without a mask mix padding into every token, so pool over all that is seen
        counted = attended if layers else mask
        pooled = core.cond_emb(h.mean(dim=1) if counted is None else _pool(h, counted))
        keys_values = [
            part
            for level in self.net.level_modules()
            for block in level.level_keys_values(h, attended)
            for layer_text in block
            for part in (engine_keys_values(*layer_text) if self.engine else layer_text)
        ]
        if additive is not None and self.engine:
            additive = engine_mask(additive)
        extra = [additive] if ATTENTION_MASK in self.fixed_outputs and additive is not None else []
        return (pooled, *extra, *keys_values)


def additive_mask(mask: Tensor) -> Tensor:
    """(1, 1, 1, L): MASKED at padding; all zero for a fully masked row, whose values are zero."""
    any_token = mask.amax(dim=1, keepdim=True)
    return ((1 - mask) * any_token * MASKED)[:, None, None, :]


def _pool(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens; the weights are divided first, to avoid a large sum."""
    weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (h * weights[:, :, None]).sum(dim=1)


def _head_layer(
    layer: TextHeadLayer, x: Tensor, mask: Tensor | None, additive: Tensor | None
) -> Tensor:
    attention = layer.attn
    parts = attention.qkv(attention.norm(x)).chunk(3, dim=-1)
    q, k, v = (split_heads(p, attention.heads) for p in parts)
    if mask is not None:
        v = v * mask[:, None, :, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=additive)
    return layer.mlp(x + attention.proj_out(merge_heads(out)))
