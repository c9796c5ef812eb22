"""One level of the nest: a UNet over noisy images, timesteps and text.

The forward pass has three parts, each run only as often as needed: `condition` (per prompt: pooled
text, cross-attention keys and values), `embed` (per timestep), `denoise` (per step). `forward` does
all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.shapes import IMAGE_CHANNELS
from mdm_apple.torch.check_inputs import check_inputs, checked_text
from mdm_apple.torch.cpu.conv import UpsampleConv3x3
from mdm_apple.torch.cpu.norm import normalize_silu
from mdm_apple.torch.layers import (
    Attention,
    FrameDownsample,
    FrameUpsample,
    KeysValues,
    ResNet,
    TemporalAttention,
    TextHeadLayer,
    attendable,
    embed_scalar,
    zeroed,
)

BlockKeysValues = tuple[KeysValues, ...]


@dataclass(frozen=True)
class Conditioning:
    """A prompt's contribution, the same for all timesteps. B rows each.

    pooled: (B, D) added to every time embedding. mask: (B, 1, 1, L), True where attended, or None.
    keys_values: per level, per block, per attention layer.
    """

    pooled: Tensor | None
    mask: Tensor | None
    keys_values: tuple[tuple[BlockKeysValues, ...], ...]


class Block(nn.Module):
    """Resnets of one stage, each followed by its attention layers, then an optional resampling."""

    def __init__(
        self,
        config: UNetConfig,
        widths_in: Sequence[int],
        width: int,
        attention: int,
        temporal_attention: int = 0,
        resample: nn.Module | None = None,
        text_width: int | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResNet(w, width, config.time_dim, config.num_groups, config.dropout) for w in widths_in
        )
        layers = len(widths_in)
        if attention:
            self.attn = nn.ModuleList(
                Attention(width, text_width, config.attention_ffn)
                for _ in range(layers * attention)
            )
        if temporal_attention:
            self.t_attn = nn.ModuleList(
                TemporalAttention(width, config.temporal_positional_encoding)
                for _ in range(layers * temporal_attention)
            )
        self.resample = resample
        self.attention, self.temporal_attention = attention, temporal_attention

    def keys_values(self, features: Tensor, mask: Tensor | None) -> BlockKeysValues:
        layers = cast("list[Attention]", list(self.attn)) if self.attention else []
        return tuple(layer.keys_values(features, mask) for layer in layers)

    def layer(
        self,
        j: int,
        x: Tensor,
        temb: Tensor,
        text: BlockKeysValues,
        mask: Tensor | None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Resnet j and the attention layers that follow it."""
        x = self.resnets[j](x, temb, skip)
        for k in range(j * self.attention, (j + 1) * self.attention):
            x = self.attn[k](x, text[k] if text else None, mask)
        for k in range(j * self.temporal_attention, (j + 1) * self.temporal_attention):
            x = self.t_attn[k](x, len(temb))
        return x


class UNet(nn.Module):
    """A UNet of any number of stages; also the base of every outer level.

    Args:
        config: this level. A nested configuration needs `NestedUNet`.
        nested: whether it sits inside another level, which adds its features after `conv_in`.
    """

    def __init__(self, config: UNetConfig, nested: bool = False) -> None:
        super().__init__()
        self.config, self.nested = config, nested
        self.checkpointing = False
        dim, text_width = config.time_dim, config.text_width
        self.temb_layer1 = nn.Linear(dim // 4, dim)
        self.temb_layer2 = nn.Linear(dim, dim)
        if config.inner is None and text_width:
            self.cond_emb = nn.Linear(text_width, dim, bias=False)
        self._add_extra_embeddings(dim)
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config.channels[0], 3, padding=1)
        self.norm_out = nn.GroupNorm(config.num_groups, config.channels[0])
        self.conv_out = zeroed(nn.Conv2d(config.channels[0], IMAGE_CHANNELS, 3, padding=1))
        self._add_blocks(text_width)
        if config.inner is None and config.text_proj_dim:
            self.lm_proj = nn.Linear(config.text_dim or 0, config.text_proj_dim)
        if config.inner is None and config.num_text_head_layers:
            self.lm_head = nn.ModuleList(
                TextHeadLayer(text_width or 0) for _ in range(config.num_text_head_layers)
            )

    def _add_extra_embeddings(self, dim: int) -> None:
        config = self.config
        if config.interp_conditioning:
            self.interp_layer1 = nn.Linear(dim // 4, dim)
            self.interp_layer2 = nn.Linear(dim, dim)
        if config.micro_conditions:
            self.cond_layers = nn.ModuleDict(
                {
                    name: nn.ModuleList([nn.Linear(dim // 4, dim), zeroed(nn.Linear(dim, dim))])
                    for name in config.micro_conditions
                }
            )
        if config.student and config.student.target_time:
            self.temb_target_layer1 = nn.Linear(dim // 4, dim)
            self.temb_target_layer2 = zeroed(nn.Linear(dim, dim))
        if config.student and config.student.guidance:
            self.temb_guidance_layer1 = nn.Linear(dim // 4, dim)
            self.temb_guidance_layer2 = zeroed(nn.Linear(dim, dim))

    def _add_blocks(self, text_width: int | None) -> None:
        config, channels = self.config, self.config.channels
        last = len(channels) - 1
        attention = config.num_attention_layers
        temporal = config.num_temporal_attention_layers or (0,) * len(channels)
        skips = [channels[0]]
        down = []
        for i, width in enumerate(channels):
            widths_in = [channels[max(i - 1, 0)]] + [width] * (config.num_resnets[i] - 1)
            resample = self._resample(width, stride=2) if i < last else None
            down.append(
                Block(config, widths_in, width, attention[i], temporal[i], resample, text_width)
            )
            skips += [width] * (config.num_resnets[i] + (i < last))
        self.down_blocks = nn.ModuleList(down)
        if config.mid_blocks:
            middle = channels[-1]
            self.mid_blocks = nn.ModuleList(
                [
                    Block(config, [middle], middle, 1, text_width=text_width),
                    Block(config, [middle], middle, 0),
                ]
            )
        up, running = [], channels[-1]
        for i in range(last, -1, -1):
            width, widths_in = channels[i], []
            for _ in range(config.num_resnets[i] + 1):
                widths_in.append(running + skips.pop())
                running = width
            resample = self._resample(width, stride=1) if i else None
            up.append(
                Block(config, widths_in, width, attention[i], temporal[i], resample, text_width)
            )
        self.up_blocks = nn.ModuleList(up)

    def _resample(self, width: int, stride: int) -> nn.Module:
        if self.config.resamples_frames:
            return FrameUpsample(width) if stride == 1 else FrameDownsample(width)
        return UpsampleConv3x3(width) if stride == 1 else nn.Conv2d(width, width, 3, 2, 1)

    # --- once per prompt ------------------------------------------------------------------

    def condition(
        self,
        text_features: Tensor | None,
        text_mask: Tensor | None = None,
        text_seen: Tensor | None = None,
    ) -> Conditioning:
        """A prompt's contribution, computed once for all timesteps.

        Args:
            text_features: (B, L, text_dim), or None for a network without text.
            text_mask: (B, L), nonzero where a token is real, or None for all.
            text_seen: (B, L), zero for padding that the network must not see, or None for none.
                Without effect on a network that masks all padding.
        """
        if self.config.text_width is None:
            return Conditioning(None, None, tuple(() for _ in self.config.levels))
        given = checked_text(self.config, text_features, text_mask, text_seen)
        pooled, features, mask = self.encode_text(given, text_mask, text_seen)
        return Conditioning(
            pooled,
            None if mask is None else attendable(mask),
            tuple(level.level_keys_values(features, mask) for level in self.level_modules()),
        )

    def encode_text(
        self,
        text_features: Tensor,
        text_mask: Tensor | None,
        text_seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pooled text (B, D), features (B, L, width) and the boolean mask for attention."""
        config = self.config
        h = self.lm_proj(text_features) if hasattr(self, "lm_proj") else text_features
        mask = None if text_mask is None else text_mask.bool()
        seen = None if text_seen is None else text_seen.bool()
        attention_mask = mask if config.masked_cross_attention else seen
        if config.num_text_head_layers:
            for layer in self.lm_head:
                h = layer(h, attention_mask)
        # unmasked head layers mix padding into every token, so pool over all that is seen
        pool_mask = attention_mask if config.num_text_head_layers else mask
        return self.cond_emb(_pool(h, pool_mask)), h, attention_mask

    def level_keys_values(
        self, features: Tensor, mask: Tensor | None
    ) -> tuple[BlockKeysValues, ...]:
        """Cross-attention keys and values of this level's own blocks, in order of execution."""
        return tuple(block.keys_values(features, mask) for block in self.run_blocks())

    def run_blocks(self) -> list[Block]:
        """Blocks in the order of a forward pass."""
        down, up = _blocks(self.down_blocks), _blocks(self.up_blocks)
        runs_middle = self.config.inner is None and self.config.mid_blocks
        return [*down, *(_blocks(self.mid_blocks) if runs_middle else []), *up]

    def level_modules(self) -> list[UNet]:
        """This level and the levels inside it, highest resolution first."""
        return [self]

    # --- once per timestep ----------------------------------------------------------------

    def embed(
        self,
        times: Tensor,
        micros: Mapping[str, Tensor] | None = None,
        target_times: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> list[Tensor]:
        """Time and micro embeddings of each level, without the text: a list of (B, D), fp32.

        Args:
            times: (B,), the network's input, 0 to num_steps - 1 (table index minus one).
            micros: values (B,) by name; a missing name takes its default.
            target_times, guidance: (B,), inputs of a distilled student only.
        """
        return [
            level.embed_level(times, micros or {}, target_times, guidance)
            for level in self.level_modules()
        ]

    def embed_level(
        self,
        times: Tensor,
        micros: Mapping[str, Tensor],
        target_times: Tensor | None,
        guidance: Tensor | None,
    ) -> Tensor:
        temb = embed_scalar(times, self.temb_layer1, self.temb_layer2)
        for name, default in self.config.micro_conditions.items():
            value = micros[name] if name in micros else torch.full_like(temb[:, 0], default)
            value = micro_value(name, value.float(), default)
            first, second = cast("tuple[nn.Linear, nn.Linear]", self.cond_layers[name])
            temb = temb + embed_scalar(value, first, second)
        student = self.config.student
        if student and student.target_time and target_times is not None:
            temb = temb + embed_scalar(
                target_times, self.temb_target_layer1, self.temb_target_layer2
            )
        if student and student.guidance and guidance is not None:
            temb = temb + embed_scalar(
                guidance, self.temb_guidance_layer1, self.temb_guidance_layer2
            )
        return temb

    # --- once per step --------------------------------------------------------------------

    def denoise(
        self, x_t: Sequence[Tensor], tembs: Sequence[Tensor], conditioning: Conditioning
    ) -> list[Tensor]:
        """Prediction for every level.

        Args:
            x_t: one (B_i, 3, H_i, W_i) per level, highest first; B_i may only grow at lower levels.
            tembs: from `embed`. conditioning: from `condition`. Both have the last level's rows.
        """
        if conditioning.pooled is not None:
            tembs = [temb + conditioning.pooled for temb in tembs]
        predictions, _ = self.denoise_level(
            list(x_t), None, list(tembs), conditioning.keys_values, conditioning.mask
        )
        return predictions

    def denoise_level(
        self,
        x_t: list[Tensor],
        features: Tensor | None,
        tembs: list[Tensor],
        keys_values: tuple[tuple[BlockKeysValues, ...], ...],
        mask: Tensor | None,
    ) -> tuple[list[Tensor], Tensor]:
        """This level and all inside it: predictions, highest first, and the last hidden state."""
        (temb,), (text,) = tembs, keys_values
        h = self.conv_in(x_t[0].to(self.conv_in.weight.dtype))
        if features is not None:
            h = h + features
        h, skips = self.run_down(h, temb, text, mask)
        if self.config.mid_blocks:
            n = len(self.down_blocks)
            for k, block in enumerate(_blocks(self.mid_blocks)):
                h = self._run(block, 0, h, temb, text[n + k] if text else (), mask)
        h = self.run_up(h, skips, temb, text, mask)
        return [self.output(h)], h

    def run_down(
        self,
        h: Tensor,
        temb: Tensor,
        text: tuple[BlockKeysValues, ...],
        mask: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        skips = [h]
        for i, block in enumerate(_blocks(self.down_blocks)):
            for j in range(len(block.resnets)):
                h = self._run(block, j, h, temb, text[i] if text else (), mask)
                skips.append(h)
            if block.resample is not None:
                h = self._resampled(block.resample, h, len(temb))
                skips.append(h)
        return h, skips

    def run_up(
        self,
        h: Tensor,
        skips: list[Tensor],
        temb: Tensor,
        text: tuple[BlockKeysValues, ...],
        mask: Tensor | None,
    ) -> Tensor:
        first = len(text) - len(self.up_blocks)
        for i, block in enumerate(_blocks(self.up_blocks)):
            for j in range(len(block.resnets)):
                keys_values = text[first + i] if text else ()
                h = self._run(block, j, h, temb, keys_values, mask, skips.pop())
            if block.resample is not None:
                h = self._resampled(block.resample, h, len(temb))
        return h

    def output(self, h: Tensor) -> Tensor:
        return self.conv_out(normalize_silu(self.norm_out, h)).float()

    def _run(
        self,
        block: Block,
        j: int,
        h: Tensor,
        temb: Tensor,
        text: BlockKeysValues,
        mask: Tensor | None,
        skip: Tensor | None = None,
    ) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block.layer, j, h, temb, text, mask, skip, use_reentrant=False)
        return block.layer(j, h, temb, text, mask, skip)

    def _resampled(self, resample: nn.Module, h: Tensor, samples: int) -> Tensor:
        return resample(h, samples) if self.config.resamples_frames else resample(h)

    def forward(
        self,
        x_t: Tensor | Sequence[Tensor],
        times: Tensor,
        text_features: Tensor | None = None,
        text_mask: Tensor | None = None,
        micros: Mapping[str, Tensor] | None = None,
        text_seen: Tensor | None = None,
    ) -> list[Tensor]:
        """Prediction per level, highest first; see `denoise`, `embed` and `condition`."""
        x_t = [x_t] if isinstance(x_t, Tensor) else list(x_t)
        check_inputs(self.config, x_t, times, text_features)
        conditioning = self.condition(text_features, text_mask, text_seen)
        return self.denoise(x_t, self.embed(times, micros), conditioning)


def _blocks(modules: nn.ModuleList) -> list[Block]:
    return cast("list[Block]", list(modules))


def micro_value(name: str, value: Tensor, default: float) -> Tensor:
    """The value to embed: `scale` capped at its default, any other micro-condition times 1000."""
    return value.clamp(max=default) if name == "scale" else value * 1000


def _pool(h: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens (B, L, C) to (B, C); a fully masked row gives zero."""
    if mask is None:
        return h.mean(dim=1)
    weights = mask[:, :, None].to(h.dtype)
    return (h * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
