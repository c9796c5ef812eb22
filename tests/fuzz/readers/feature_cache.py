"""A cache of text features."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.text.feature_cache import FeatureCache, FeatureKey

KEY = FeatureKey("0" * 64, "1" * 64, lowercase=True, max_tokens=4, width=2)
CAPTIONS = ["a", "red heart"]


def read(folder: Path, data: bytes) -> None:
    path = folder / "features.safetensors"
    path.write_bytes(data)
    cache = FeatureCache(path, KEY)
    cache.lookup([caption for caption in CAPTIONS if caption in cache])
