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
        grid_in, grid_inner = self._frame_grids()

        # 1. this level's image, and the features from above
        x = unfold(x_t[0], grid_in)
        if self.config.normalize_input:
            x = x / x.flatten(1).std(dim=1)[:, None, None, None]
        h = fold(self.conv_in(x.to(self.conv_in.weight.dtype)), grid_in)
        if features is not None:
            h = h + features

        # 2. down to the side of the inner level
        h, skips = self.run_down(unfold(h, grid_in), temb, text, own_mask)

        # 3. the inner level, with zero features for rows that exist only there
        down = self._adapted(self.in_adapter, h, grid_inner)
        h = fold(h, grid_inner)
        if rows < rows_below:
            down = F.pad(down, (0, 0, 0, 0, 0, 0, 0, rows_below - rows))
        predictions, hidden = self.inner_unet.denoise_level(
            x_t[1:], down, tembs[1:], keys_values[1:], mask
        )
        h = h + self._adapted(self.out_adapter, unfold(hidden, grid_inner), grid_inner)[:rows]

        # 4. up again
        h = self.run_up(unfold(h, grid_inner), skips, temb, text, own_mask)
        prediction = fold(self.output(h), grid_in)
        return [prediction, *predictions], fold(h, grid_in)

    def _adapted(self, adapter: nn.Module, frames: Tensor, grid: int) -> Tensor:
        """The canvas of adapted features; published networks adapt across borders of frames."""
        if self.config.adapters_per_frame:
            return fold(adapter(frames), grid)
        return adapter(fold(frames, grid))

    def _frame_grids(self) -> tuple[int, int]:
        """Frames per side of the square that tiles this level's images, and the inner level's."""
        assert self.config.inner is not None, "build_unet chooses the class"
        return self.config.frame_grid, self.config.inner.frame_grid


def unfold(x: Tensor, grid: int) -> Tensor:
    """(B, C, grid h, grid w) to (B grid grid, C, h, w), row by row within a sample."""
    if grid == 1:
        return x
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, grid, height // grid, grid, width // grid)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // grid, width // grid)


def fold(x: Tensor, grid: int) -> Tensor:
    """The inverse of `unfold`."""
    if grid == 1:
        return x
    rows, channels, height, width = x.shape
    x = x.reshape(rows // grid**2, grid, grid, channels, height, width)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, grid * height, grid * width)


def build_unet(config: UNetConfig, nested: bool = False) -> UNet:
    """The network of a configuration: `NestedUNet` if there is an inner level, else `UNet`."""
    return (NestedUNet if config.inner else UNet)(config, nested)


def build_on_meta(config: UNetConfig) -> UNet:
    """The network without memory for weights: for counting, and for loading by assignment."""
    with torch.device("meta"):
        return build_unet(config)


def _first_rows(keys_values: tuple[BlockKeysValues, ...], rows: int) -> tuple[BlockKeysValues, ...]:
    return tuple(tuple((k[:rows], v[:rows]) for k, v in block) for block in keys_values)
