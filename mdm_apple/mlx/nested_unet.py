"""The nest in MLX: an outer UNet whose bottleneck is a smaller UNet with its own noisy image.

Gu et al. 2023 (arXiv:2310.15111), section 3. Both adapters start at zero, so that wrapping a
trained network in a new outer level leaves its predictions unchanged.
"""

from __future__ import annotations

import mlx.core as mx

from mdm_apple.config.network import UNetConfig
from mdm_apple.mlx.layers import Conv2d, number_type, zeroed
from mdm_apple.mlx.unet import BlockKeysValues, UNet


class NestedUNet(UNet):
    """An outer level and everything inside it, with the interface of `UNet`."""

    def __init__(self, config: UNetConfig, nested: bool = False) -> None:
        super().__init__(config, nested)
        assert config.inner is not None, "build_unet chooses the class"
        self.inner_unet = build_unet(config.inner, nested=True)
        outer, inner = config.channels[-1], config.inner.channels[0]
        self.in_adapter = zeroed(Conv2d(outer, inner))
        self.out_adapter = zeroed(Conv2d(inner, outer))
        if config.freeze_inner:
            self.inner_unet.freeze()

    def level_modules(self) -> list[UNet]:
        return [self, *self.inner_unet.level_modules()]

    def encode_text(
        self,
        text_features: mx.array,
        text_mask: mx.array | None,
        text_seen: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        return self.inner_unet.encode_text(text_features, text_mask, text_seen)

    def denoise_level(
        self,
        x_t: list[mx.array],
        features: mx.array | None,
        tembs: list[mx.array],
        keys_values: tuple[tuple[BlockKeysValues, ...], ...],
        mask: mx.array | None,
    ) -> tuple[list[mx.array], mx.array]:
        rows, rows_below = len(x_t[0]), len(x_t[1])
        if rows == 0:  # a small mixed batch; MLX cannot reshape an empty array
            inside, _ = self.inner_unet.denoise_level(
                x_t[1:], None, tembs[1:], keys_values[1:], mask
            )
            return [x_t[0], *inside], x_t[0]
        temb = tembs[0][:rows]
        text = _first_rows(keys_values[0], rows)
        own_mask = None if mask is None else mask[:rows]
        grid_in, grid_inner = self._frame_grids()

        # 1. this level's image, and the features from above
        x = unfold(x_t[0], grid_in)
        if self.config.normalize_input:
            x = x / mx.std(x, axis=(1, 2, 3), keepdims=True, ddof=1)
        h = fold(self.conv_in(x.astype(number_type(self.conv_in))), grid_in)
        if features is not None:
            h = h + features

        # 2. down to the side of the inner level
        h, skips = self.run_down(unfold(h, grid_in), temb, text, own_mask)

        # 3. the inner level, with zero features for rows that exist only there
        down = self._adapted(self.in_adapter, h, grid_inner)
        h = fold(h, grid_inner)
        if rows < rows_below:
            down = mx.pad(down, [(0, rows_below - rows), (0, 0), (0, 0), (0, 0)])
        predictions, hidden = self.inner_unet.denoise_level(
            x_t[1:], down, tembs[1:], keys_values[1:], mask
        )
        h = h + self._adapted(self.out_adapter, unfold(hidden, grid_inner), grid_inner)[:rows]

        # 4. up again
        h = self.run_up(unfold(h, grid_inner), skips, temb, text, own_mask)
        prediction = fold(self.output(h), grid_in)
        return [prediction, *predictions], fold(h, grid_in)

    def _adapted(self, adapter: Conv2d, frames: mx.array, grid: int) -> mx.array:
        """The canvas of adapted features; published networks adapt across borders of frames."""
        if self.config.adapters_per_frame:
            return fold(adapter(frames), grid)
        return adapter(fold(frames, grid))

    def _frame_grids(self) -> tuple[int, int]:
        """Frames per side of the square that tiles this level's images, and the inner level's."""
        assert self.config.inner is not None, "build_unet chooses the class"
        return self.config.frame_grid, self.config.inner.frame_grid


def unfold(x: mx.array, grid: int) -> mx.array:
    """(B, grid h, grid w, C) to (B grid grid, h, w, C), row by row within a sample."""
    if grid == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, grid, height // grid, grid, width // grid, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height // grid, width // grid, channels)


def fold(x: mx.array, grid: int) -> mx.array:
    """The inverse of `unfold`."""
    if grid == 1:
        return x
    rows, height, width, channels = x.shape
    x = x.reshape(rows // grid**2, grid, grid, height, width, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid * height, grid * width, channels)


def build_unet(config: UNetConfig, nested: bool = False) -> UNet:
    """The network of a configuration: `NestedUNet` if there is an inner level, else `UNet`."""
    return (NestedUNet if config.inner else UNet)(config, nested)


def _first_rows(keys_values: tuple[BlockKeysValues, ...], rows: int) -> tuple[BlockKeysValues, ...]:
    return tuple(tuple((k[:rows], v[:rows]) for k, v in block) for block in keys_values)
