"""The checks of `config.check_inputs` for MLX arrays, whose images are (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mdm_apple.config.check_inputs import check_image_shapes, check_text_shapes
from mdm_apple.config.network import UNetConfig


def checked_text(
    config: UNetConfig, features: mx.array | None, mask: mx.array | None, seen: mx.array | None
) -> mx.array:
    """Return the features if their shape and those of the masks fit. Raises ValueError."""
    shapes = [None if x is None else tuple(x.shape) for x in (features, mask, seen)]
    check_text_shapes(config, *shapes)
    assert features is not None
    return features


def check_inputs(
    config: UNetConfig, x_t: Sequence[mx.array], times: mx.array, text_features: mx.array | None
) -> None:
    """Refuse images of the wrong count, shape or batch, and text of a different batch."""
    shapes = [(x.shape[0], *x.shape[3:], *x.shape[1:3]) for x in x_t]
    check_image_shapes(
        config, shapes, len(times), None if text_features is None else len(text_features)
    )
