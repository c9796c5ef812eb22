"""Text features computed once and kept in a file, so that training needs no encoder in memory.

Input: captions and a function that encodes them. Output: one safetensors file whose features are
bfloat16 rows without padding, and `FeatureCache`, which reads only the requested rows.
The file holds `features` BF16 (rows, width) and, with one entry per caption sorted by digest,
`digests` U8 (n, 32), `starts` I64 (n,) and `lengths` I64 (n,). A digest is the SHA-256 of a
caption as it was tokenized.
"""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import NullPrompt, TextConfig
from mdm_apple.storage.files import atomic_file
from mdm_apple.storage.tensorfile import (
    Mapped,
    TensorFileError,
    from_bfloat16,
    header_bytes,
    map_tensors,
    to_bfloat16,
)
from mdm_apple.text.tokenizer import TextError, TextFeatures, shown, spelled

Encode = Callable[[list[str]], TextFeatures[NDArray[np.float32]]]

DIGEST_BYTES = 32
DATA_START = 4096  # the header is written last, into this space before the first row
TENSOR_DTYPES = {"features": "BF16", "digests": "U8", "starts": "I64", "lengths": "I64"}


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on besides the caption; a cache with another key is refused."""

    encoder_sha256: str
    tokenizer_sha256: str
    lowercase: bool
    max_tokens: int
    width: int
    null_prompt: NullPrompt = "end"

    @classmethod
    def of(cls, text: TextConfig) -> FeatureKey:
        """The key for a model's text settings; TextError if they name no encoder."""
        if not (text.encoder and text.encoder_sha256 and text.tokenizer_sha256):
            raise TextError(
                "text: feature caches need the encoder, encoder_sha256 and tokenizer_sha256 in "
                "config.json; fetch the encoder first."
            )
        return cls(
            text.encoder_sha256,
            text.tokenizer_sha256,
            text.lowercase,
            text.max_tokens,
            text.encoder.d_model,
            text.null_prompt,
        )

    def as_metadata(self) -> dict[str, str]:
        """The key as text values, which safetensors requires."""
        added = {} if self.null_prompt == "end" else {"null_prompt": self.null_prompt}
        return added | {
            "format": "mdm-text-features-1",
            "encoder_sha256": self.encoder_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "lowercase": str(self.lowercase).lower(),
            "max_tokens": str(self.max_tokens),
            "width": str(self.width),
        }


def embed_captions(
    captions: Iterable[str],
    encode: Encode,
    path: Path,
    key: FeatureKey,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encode each distinct caption once, and the null prompt, into a cache at `path`.

    Captions are kept in memory, features are not. Batches go from short to long captions, which
    keeps padding small. `progress` receives the captions done and their total. Returns the total.
    Raises TextError when features have the wrong shape, are not finite or exceed bfloat16.
    """
    unique = {spelled(caption, lowercase=key.lowercase) for caption in captions} | {""}
    ordered = sorted(unique, key=lambda caption: (len(caption), caption))
    lengths = array("q")
    with atomic_file(path) as file:
        file.seek(DATA_START)
        for first in range(0, len(ordered), batch_size):
            batch = ordered[first : first + batch_size]
            lengths.extend(_write_rows(file, batch, encode(batch), key))
            if progress:
                progress(first + len(batch), len(ordered))
        _write_index(file, ordered, lengths, key)
    return len(ordered)


def _write_rows(
    file: BinaryIO,
    captions: list[str],
    features: TextFeatures[NDArray[np.float32]],
    key: FeatureKey,
) -> list[int]:
    values, mask = features.values, features.mask
    if values.shape != (len(captions), mask.shape[-1], key.width) or mask.shape != values.shape[:2]:
        raise TextError(
            f"features: expected {len(captions)} captions of width {key.width} with a mask, "
            f"got {values.shape} and {mask.shape}."
        )
    lengths = [int(n) for n in np.count_nonzero(mask, axis=1)]
    for caption, row, length, kept in zip(captions, values, lengths, mask, strict=True):
        if not 1 <= length <= key.max_tokens or not kept[:length].all():
            raise TextError(
                f"features of {shown(caption)}: expected 1 to {key.max_tokens} tokens and then "
                f"padding, got {length}."
            )
        encoded = to_bfloat16(row[:length])
        if not np.isfinite(from_bfloat16(encoded)).all():
            raise TextError(
                f"features of {shown(caption)}: expected finite numbers; encode in fp32 or bf16."
            )
        file.write(encoded.tobytes())
    return lengths


def _write_index(
    file: BinaryIO, captions: list[str], lengths: Sequence[int], key: FeatureKey
) -> None:
    digests = [caption_digest(caption) for caption in captions]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    sizes = np.array(lengths, "<i8")
    starts = np.cumsum(sizes) - sizes
    shapes = {
        "features": (int(sizes.sum()), key.width),
        "digests": (len(digests), DIGEST_BYTES),
        "starts": (len(digests),),
        "lengths": (len(digests),),
    }
    file.write(b"".join(digests[i] for i in order))
    file.write(starts[order].tobytes())
    file.write(sizes[order].tobytes())
    kinds = {name: (dtype, shapes[name]) for name, dtype in TENSOR_DTYPES.items()}
    file.seek(0)
    file.write(header_bytes(kinds, key.as_metadata(), DATA_START))


class FeatureCache:
    """The features of a cache file, found by caption. Opening reads the index, not the features."""

    def __init__(self, path: Path, key: FeatureKey) -> None:
        """Raises TextError if the file is not a complete cache or was made with another key."""
        self.path = path
        self.key = key
        views = _mapped(path, key)
        self._features, self._digests = views["features"], views["digests"]
        self._starts, self._lengths = np.array(views["starts"]), np.array(views["lengths"])
        if not _index_inside(self._starts, self._lengths, len(self._features), key.max_tokens):
            raise TextError(f"{path}: has an invalid index; run `mdm embed` to make it again.")

    @classmethod
    def for_text(cls, path: Path, text: TextConfig) -> FeatureCache:
        """The cache for a model; one that names no hashes takes those of the cache."""
        found = _complete(path).metadata if text.encoder_sha256 is None and text.encoder else {}
        named = {n: str(found[n]) for n in ("encoder_sha256", "tokenizer_sha256") if found.get(n)}
        if text.tokenizer_sha256 is not None:
            named.pop("tokenizer_sha256", None)
        return cls(path, FeatureKey.of(replace(text, **named)))

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path, FeatureKey]]:
        """Pickle the path only: a worker process opens the file again."""
        return FeatureCache, (self.path, self.key)

    def lengths(self, captions: Sequence[str]) -> NDArray[np.int64]:
        """Number of tokens of each caption: (B,). Raises TextError for a missing caption."""
        return np.array([self._entry(caption)[1] for caption in captions], np.int64)

    def lookup(
        self, captions: Sequence[str], *, length: int | None = None
    ) -> TextFeatures[NDArray[np.float32]]:
        """Features of captions: values (B, L, width) float32 and mask (B, L), zero-padded.

        L is the longest of them, or `length`. Raises TextError for a missing caption.
        """
        entries = [self._entry(caption) for caption in captions]
        longest = max((n for _, n in entries), default=0)
        if length is not None and length < longest:
            raise TextError(
                f"length: expected at least {longest} for these captions, got {length}."
            )
        padded = length or longest
        values = np.zeros((len(entries), padded, self.key.width), np.float32)
        mask = np.zeros((len(entries), padded), np.float32)
        for row, (start, count) in enumerate(entries):
            values[row, :count] = from_bfloat16(self._features[start : start + count])
            mask[row, :count] = 1
        if not np.isfinite(values).all():
            raise TextError(
                f"{self.path}: holds numbers that are not finite; run `mdm embed` to make it again."
            )
        return TextFeatures(values, mask)

    def _entry(self, caption: str) -> tuple[int, int]:
        index = self._find(caption)
        if index is None:
            raise TextError(
                f"{self.path}: no features for the caption {shown(caption)}; "
                "run `mdm embed` with these captions."
            )
        return int(self._starts[index]), int(self._lengths[index])

    def _find(self, caption: str) -> int | None:
        digest = caption_digest(spelled(caption, lowercase=self.key.lowercase))
        index = bisect.bisect_left(
            range(len(self)), digest, key=lambda i: self._digests[i].tobytes()
        )
        found = index < len(self) and self._digests[index].tobytes() == digest
        return index if found else None


def caption_digest(cleaned: str) -> bytes:
    return hashlib.sha256(cleaned.encode()).digest()


def _mapped(path: Path, key: FeatureKey) -> dict[str, NDArray[Any]]:
    """Check everything except the numbers: names, dtypes, shapes, and the key."""
    mapped = _complete(path)
    _check_key(path, mapped.metadata, key)
    if not _fits(mapped.views, key):
        raise TextError(_broken(path))
    return mapped.views


def _complete(path: Path) -> Mapped:
    """The file's tensors, if they have the names and dtypes of a cache."""
    if not path.is_file():
        raise TextError(f"{path}: no such file; make it with `mdm embed`.")
    try:
        mapped = map_tensors(path)
    except TensorFileError:
        raise TextError(_broken(path)) from None
    if mapped.kinds != TENSOR_DTYPES or not mapped.metadata:
        raise TextError(_broken(path))
    return mapped


def _broken(path: Path) -> str:
    return f"{path}: not a complete file of text features; run `mdm embed` to make it again."


def _check_key(path: Path, found: dict[str, object], key: FeatureKey) -> None:
    unsaid = {"null_prompt": "end"}  # caches are older than other null prompts
    made_with = unsaid | found
    for name, expected in (unsaid | key.as_metadata()).items():
        if made_with.get(name) != expected:
            raise TextError(
                f"{path}: was made with {name} {shown(str(made_with.get(name)))} where the model "
                f"has {expected}; run `mdm embed` with this model."
            )


def _fits(views: dict[str, NDArray[Any]], key: FeatureKey) -> bool:
    count = views["starts"].shape
    rows = views["features"].shape[:1]
    return (
        len(count) == 1
        and count[0] > 0
        and views["lengths"].shape == count
        and views["digests"].shape == (*count, DIGEST_BYTES)
        and views["features"].shape == (*rows, key.width)
    )


def _index_inside(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], rows: int, max_tokens: int
) -> bool:
    """Whether every entry lies within the features."""
    inside = (starts >= 0) & (lengths >= 1) & (lengths <= max_tokens)
    return bool((inside & (starts <= rows - lengths)).all())
