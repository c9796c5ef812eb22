"""From captions to a bundle's conditioning: tokens or cached features, then its own packages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mdm_apple.text.feature_cache import FeatureCache
from mdm_apple.text.padding import seen_padding
from mdm_apple.text.tokenizer import Tokenizer

from ..bundle.folder import Bundle
from ..errors import BundleError
from ..layouts.names import TEXT_FEATURES, TEXT_MASK, TEXT_SEEN, TOKEN_IDS
from .packages import Denoiser, Values


class BundlePrompts:
    """Conditions a bundle's network on captions.

    Args:
        features: a cache from `mdm embed`, for bundles without a text encoder.
    """

    def __init__(
        self, bundle: Bundle, denoiser: Denoiser, features: FeatureCache | None = None
    ) -> None:
        self._bundle, self._denoiser, self._features = bundle, denoiser, features
        self._config = bundle.config()
        self._tokenizer: Tokenizer | None = None

    def condition(
        self, pairs: Sequence[tuple[str, str | None]]
    ) -> dict[tuple[str, str | None], Values]:
        """The conditioning on the first caption of each pair; the second is beside it, or None.

        See `text.padding`. Each caption passes the text encoder once.
        """
        text = self._config.text
        if text is None:
            nothing = self._denoiser.condition(None)
            return dict.fromkeys(pairs, nothing)
        encoded: dict[str, Values] = {}
        done: dict[tuple[str, bytes], Values] = {}
        out: dict[tuple[str, str | None], Values] = {}
        for caption, beside in pairs:
            if caption not in encoded:
                encoded[caption] = self._encode(caption, text.max_tokens)
            values = encoded[caption]
            others = None if beside is None else [beside]
            seen = seen_padding(text, values[TEXT_MASK], self._count, others)
            if seen is not None:
                values = values | {TEXT_SEEN: seen}
            key = caption, b"" if seen is None else seen.tobytes()
            if key not in done:
                done[key] = self._denoiser.condition(values)
            out[caption, beside] = done[key]
        return out

    def _encode(self, caption: str, length: int) -> Values:
        """Features and mask of a caption."""
        if self._features is not None:
            found = self._features.lookup([caption], length=length)
            return {TEXT_FEATURES: found.values, TEXT_MASK: found.mask}
        batch = self._tokens().encode([caption], length, pad_to_max=True)
        return self._denoiser.encode({TOKEN_IDS: batch.ids, TEXT_MASK: batch.mask})

    def _count(self, captions: Sequence[str]) -> NDArray[np.int64]:
        if self._features is not None:
            return self._features.lengths(captions)
        assert self._config.text, "only captions are counted"
        return self._tokens().lengths(captions, self._config.text.max_tokens)

    def _tokens(self) -> Tokenizer:
        text = self._bundle.manifest.text
        if text is None or text.encoder is None or text.tokenizer is None:
            lacks = "tokenizer" if text and text.encoder else "text encoder"
            raise BundleError(
                f"{self._bundle.path}: has no {lacks}, so prompts need a feature cache; make one "
                "with `mdm embed` and give it as --features."
            )
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(
                self._bundle.file(text.tokenizer),
                lowercase=text.lowercase,
                null_prompt=text.null_prompt,
            )
        return self._tokenizer
