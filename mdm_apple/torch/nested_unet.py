"""The nest: an outer UNet whose bottleneck is a smaller UNet with its own noisy image.

Gu et al. 2023 (arXiv:2310.15111), section 3. Both adapters start at zero, so that wrapping a
trained network in a new outer level leaves its predictions unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_apple.config.network import UNetConfig
from mdm_apple.torch.layers import zeroed
from mdm_apple.torch.unet import BlockKeysValues, UNet


class NestedUNet(UNet):
    """An outer level and everything inside it, with the interface of `UNet`."""

    def __init__(self, config: UNetConfig, nested: bool = False) -> None:
        super().__init__(config, nested)
        assert config.inner is not None, "build_unet chooses the class"
        self.inner_unet = build_unet(config.inner, nested=True)
        outer, inner = config.channels[-1], config.inner.channels[0]
        self.in_adapter = zeroed(nn.Conv2d(outer, inner, 3, padding=1))
        self.out_adapter = zeroed(nn.Conv2d(inner, outer, 3, padding=1))
        if config.freeze_inner:
            self.inner_unet.requires_grad_(False)

    def level_modules(self) -> list[UNet]:
        return [self, *self.inner_unet.level_modules()]

    def encode_text(
        self,
        text_features: Tensor,
        text_mask: Tensor | None,
        text_seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.inner_unet.encode_text(text_features, text_mask, text_seen)

    def denoise_level(
        self,
        x_t: list[Tensor],
        features: Tensor | None,
        tembs: list[Tensor],
        keys_values: tuple[tuple[BlockKeysValues, ...], ...],
        mask: Tensor | None,
    ) -> tuple[list[Tensor], Tensor]:
        rows, rows_below = len(x_t[0]), len(x_t[1])
        temb = tembs[0][:rows]
        text = _first_rows(keys_values[0], rows)
        own_mask = None if mask is None else mask[:rows]
        # 1. this level's frames, and the features from above
        grid = self.config.frame_grid
        h = self.normalized(unfold(x_t[0], grid))
        h = self.conv_in(h.to(self.conv_in.weight.dtype))
        if features is not None:
            h = h + unfold(features, grid)

        # 2. down to the inner level
        h, skips = self.run_down(h, temb, text, own_mask)

        # 3. the inner level, with zero features for rows that exist only there
        down = self.features_inside(h)
        if rows < rows_below:
            down = F.pad(down, (0, 0, 0, 0, 0, 0, 0, rows_below - rows))
        predictions, hidden = self.inner_unet.denoise_level(
            x_t[1:], down, tembs[1:], keys_values[1:], mask
        )
        h = h + self.frames_from_inside(hidden)[: len(h)]

        # 4. up again
        h = self.run_up(h, skips, temb, text, own_mask)
        return [fold(self.output(h), grid), *predictions], fold(h, grid)

    def normalized(self, x: Tensor) -> Tensor:
        """Frames (B N, 3, h, w) as `conv_in` takes them."""
        if not self.config.normalize_input:
            return x
        return x / x.flatten(1).std(dim=1)[:, None, None, None]

    def features_inside(self, h: Tensor) -> Tensor:
        """From frames at the bottom of this level to what it adds to canvases of the inner one.

        Published networks adapt across borders of frames.
        """
        if self.config.adapters_per_frame:
            return fold(self.in_adapter(h), self._inner_grid)
        return self.in_adapter(fold(h, self._inner_grid))

    def frames_from_inside(self, hidden: Tensor) -> Tensor:
        """From canvases (B, C, H, W) of the inner level's last hidden state to frames."""
        if self.config.adapters_per_frame:
            return self.out_adapter(unfold(hidden, self._inner_grid))
        return unfold(self.out_adapter(hidden), self._inner_grid)

    @property
    def _inner_grid(self) -> int:
        assert self.config.inner is not None, "build_unet chooses the class"
        return self.config.inner.frame_grid


def unfold(x: Tensor, grid: int) -> Tensor:
    """(B, C, grid h, grid w) to (B grid grid, C, h, w), row by row within a sample.

    Two exchanges of axes, so that no tensor has more than four.
    """
    if grid == 1:
        return x
    batch, channels, height, width = x.shape
    height, width = height // grid, width // grid
    x = x.reshape(batch, channels, grid, height * grid * width).transpose(1, 2)
    x = x.reshape(batch * grid, channels * height, grid, width).transpose(1, 2)
    return x.reshape(-1, channels, height, width)


def fold(x: Tensor, grid: int) -> Tensor:
    """The inverse of `unfold`."""
    if grid == 1:
        return x
    rows, channels, height, width = x.shape
    x = x.reshape(rows // grid, grid, channels * height, width).transpose(1, 2)
    x = x.reshape(-1, grid, channels, height * grid * width).transpose(1, 2)
    return x.reshape(-1, channels, grid * height, grid * width)


def build_unet(config: UNetConfig, nested: bool = False) -> UNet:
    """The network of a configuration: `NestedUNet` if there is an inner level, else `UNet`."""
    return (NestedUNet if config.inner else UNet)(config, nested)


def build_on_meta(config: UNetConfig) -> UNet:
    """The network without memory for weights: for counting, and for loading by assignment."""
    with torch.device("meta"):
        return build_unet(config)


def _first_rows(keys_values: tuple[BlockKeysValues, ...], rows: int) -> tuple[BlockKeysValues, ...]:
    return tuple(tuple((k[:rows], v[:rows]) for k, v in block) for block in keys_values)
