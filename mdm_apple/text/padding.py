"""How much of the padding after a caption a network sees.

Input: numbers of tokens. Output: a mask of the positions that are seen. Networks without a mask
attend to padding, so its length is part of the picture. It depends on the captions of one picture
alone, never on its neighbours in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import TextConfig

CountTokens = Callable[[Sequence[str]], NDArray[np.int64]]  # captions -> tokens of each, with end


def seen_padding(
    text: TextConfig,
    mask: NDArray[np.float32],
    count: CountTokens,
    beside: Sequence[str] | None = None,
) -> NDArray[np.float32] | None:
    """1 up to the longest caption of the same picture, 0 after it: (B, max_tokens).

    None for a model that sees all of its padding.

    Args:
        mask: (B, max_tokens), 1 for the tokens of each picture's caption.
        beside: the other caption of each picture; None if it has no other. count: its tokens.
    """
    if text.padding == "max_tokens":
        return None
    lengths = np.count_nonzero(mask, axis=1)
    if beside is not None:
        lengths = np.maximum(lengths, count(beside))
    return (np.arange(text.max_tokens)[None, :] < lengths[:, None]).astype(np.float32)
