"""Checks of a network's inputs by shape, done once, at its public entry point.

Shapes are given channels first, (B, C, H, W), whatever the backend's own order.
"""

from __future__ import annotations

from collections.abc import Sequence

from mdm_apple.config.network import UNetConfig
from mdm_apple.config.shapes import IMAGE_CHANNELS
from mdm_apple.config.types import Shape


def check_text_shapes(
    config: UNetConfig, features: Shape | None, mask: Shape | None, seen: Shape | None
) -> None:
    """Refuse text features (B, L, width) or masks (B, L) of the wrong shape. Raises ValueError."""
    width = config.innermost.text_dim
    if features is None or len(features) != 3 or features[2] != width:
        raise ValueError(f"text_features: expected (B, L, {width}), got {features}.")
    for name, shape in (("text_mask", mask), ("text_seen", seen)):
        if shape is not None and shape != features[:2]:
            raise ValueError(
                f"{name}: expected {features[:2]} to match text_features, "
                f"got {shape}. Pad or truncate the tokens."
            )


def check_image_shapes(
    config: UNetConfig, x_t: Sequence[Shape], rows: int, text_rows: int | None
) -> None:
    """Refuse images of the wrong count, shape or batch, and text of a different batch.

    Args:
        rows: batch of the times. text_rows: batch of the text features; None without text.

    Raises ValueError.
    """
    if len(x_t) != len(config.levels):
        raise ValueError(f"x_t: expected {len(config.levels)} levels, got {len(x_t)}.")
    batches = [x[0] for x in x_t]
    if batches != sorted(batches) or batches[-1] != rows:
        raise ValueError(
            f"x_t: batches may only grow at lower resolutions, and the last must equal "
            f"times, got {batches} and {rows}."
        )
    side = x_t[0][-1]
    if side % config.side_multiple:
        raise ValueError(f"x_t: side must be a multiple of {config.side_multiple}, got {side}.")
    for i, (x, scale) in enumerate(zip(x_t, config.scales, strict=True)):
        wanted = (IMAGE_CHANNELS, *2 * (side * scale // config.scales[0],))
        if x[1:] != wanted:
            raise ValueError(
                f"x_t: expected {wanted} at level {i}, got {x[1:]} (channels, height, width)."
            )
    if config.text_width and text_rows is not None and text_rows != rows:
        raise ValueError(f"text_features: expected {rows} rows to match times, got {text_rows}.")
