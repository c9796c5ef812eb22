"""The checks of `config.check_inputs` for torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mdm_apple.config.check_inputs import check_image_shapes, check_text_shapes
from mdm_apple.config.network import UNetConfig


def checked_text(
    config: UNetConfig, features: Tensor | None, mask: Tensor | None, seen: Tensor | None
) -> Tensor:
    """Return the features if their shape and those of the masks fit. Raises ValueError."""
    shapes = [None if x is None else tuple(x.shape) for x in (features, mask, seen)]
    check_text_shapes(config, *shapes)
    assert features is not None
    return features


def check_inputs(
    config: UNetConfig, x_t: Sequence[Tensor], times: Tensor, text_features: Tensor | None
) -> None:
    """Refuse images of the wrong count, shape or batch, and text of a different batch."""
    shapes = [tuple(x.shape) for x in x_t]
    check_image_shapes(
        config, shapes, len(times), None if text_features is None else len(text_features)
    )
