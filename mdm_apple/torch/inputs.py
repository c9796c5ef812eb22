"""What a network is handed is checked once, at its public door."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mdm_apple.config import UNetConfig
from mdm_apple.shapes import IMAGE_CHANNELS


def checked_text(config: UNetConfig, features: Tensor | None, mask: Tensor | None) -> Tensor:
    """The features, if their shape and the mask's fit. Raises ValueError."""
    width = config.innermost.text_dim
    if features is None or features.ndim != 3 or features.shape[2] != width:
        got = None if features is None else tuple(features.shape)
        raise ValueError(f"text_features: expected (B, L, {width}), got {got}.")
    if mask is not None and mask.shape != features.shape[:2]:
        raise ValueError(
            f"text_mask: expected {tuple(features.shape[:2])} to match text_features, "
            f"got {tuple(mask.shape)}. Pad or truncate the tokens."
        )
    return features


def check_inputs(
    config: UNetConfig, x_t: Sequence[Tensor], times: Tensor, text_features: Tensor | None
) -> None:
    """Refuse images of the wrong count, shape or batch, and text of another. Raises ValueError."""
    if len(x_t) != len(config.levels):
        raise ValueError(f"x_t: expected {len(config.levels)} levels, got {len(x_t)}.")
    rows = [len(x) for x in x_t]
    if rows != sorted(rows) or rows[-1] != len(times):
        raise ValueError(
            f"x_t: batches may only grow towards lower resolution and the last must equal "
            f"times, got {rows} and {len(times)}."
        )
    side = x_t[0].shape[-1]
    if side % config.side_multiple:
        raise ValueError(f"x_t: side must be a multiple of {config.side_multiple}, got {side}.")
    for i, (x, scale) in enumerate(zip(x_t, config.scales, strict=True)):
        wanted = (IMAGE_CHANNELS, *2 * (side * scale // config.scales[0],))
        if x.shape[1:] != wanted:
            raise ValueError(f"x_t: expected {wanted} at level {i}, got {tuple(x.shape[1:])}.")
    if config.text_width and text_features is not None and len(text_features) != len(times):
        raise ValueError(
            f"text_features: expected {len(times)} rows to match times, got {len(text_features)}."
        )
