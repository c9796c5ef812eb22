"""Captions to tokens, and the form in which text reaches a network.

Input: raw captions. Output: token ids with a mask, or `TextFeatures` from an encoder (torch/t5,
mlx/t5) or a cache (feature_cache). Tokens come from a SentencePiece unigram model with T5's special
ids. Source: Raffel et al. 2020 (arXiv:1910.10683).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mdm_apple.config.model import NullPrompt
from mdm_apple.config.ranges import in_range
from mdm_apple.errors import MdmError
from mdm_apple.storage.files import atomic_file, is_lfs_pointer
from mdm_apple.storage.model_folder import MAX_TOKENIZER_BYTES
from mdm_apple.text.captions import MAX_CAPTION_CHARACTERS, clean_caption

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SPACE = "\u2581"  # how SentencePiece writes a space in a piece

Array = TypeVar("Array")


class TextError(MdmError):
    """A caption, tokenizer or feature cache that cannot be used."""


@dataclass(frozen=True, eq=False)
class TextFeatures(Generic[Array]):
    """Output of a text encoder: arrays of numpy or of one backend.

    values (B, L, D), zero where the mask is; mask (B, L), 1 for tokens, 0 for padding; seen (B, L),
    0 for padding that the network must not see, or None if it sees all of it.
    """

    values: Array
    mask: Array
    seen: Array | None = None


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """ids (B, L) int32, padded with PAD_ID on the right; mask (B, L) float32, 1 for tokens."""

    ids: NDArray[np.int32]
    mask: NDArray[np.float32]


def spelled(caption: str, *, lowercase: bool) -> str:
    """The caption as it is tokenized: cleaned, and in lower case if requested.

    Lower-casing works character by character: without context, all implementations agree.
    Raises TextError for something that is not text or is longer than MAX_CAPTION_CHARACTERS.
    """
    if not isinstance(caption, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TextError(f"caption: expected text, got {type(caption).__name__}.")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise TextError(
            f"caption: expected at most {MAX_CAPTION_CHARACTERS} characters, got {len(caption)} "
            f"in {shown(caption)}."
        )
    cleaned = clean_caption(caption)
    return "".join(character.lower() for character in cleaned) if lowercase else cleaned


def shown(caption: str) -> str:
    """A caption as an error message shows it: quoted, escaped, shortened."""
    return ascii(caption if len(caption) <= 60 else caption[:57] + "...")


@dataclass(frozen=True)
class Unread:
    """The end of a caption that is beyond the limit, and its characters without a token."""

    cut: str
    unknown: str


class Tokenizer:
    """A SentencePiece model with pad 0, eos 1, unk 2. `model` are the bytes of its file."""

    def __init__(
        self,
        model: bytes,
        *,
        lowercase: bool = False,
        null_prompt: NullPrompt = "end",
        where: str = "tokenizer",
    ) -> None:
        """Raises TextError if the bytes are not such a model; `where` names them in the message."""
        self.model = model
        self.lowercase = lowercase
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = _load_processor(model, where)
        self.vocab_size: int = self._processor.get_piece_size()
        self._null = self._null_prompt(null_prompt, where)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        lowercase: bool = False,
        null_prompt: NullPrompt = "end",
        expected_sha256: str | None = None,
    ) -> Tokenizer:
        """Read a model file of at most MAX_TOKENIZER_BYTES, and check its hash if one is given."""
        model = _read_limited(path)
        if expected_sha256 is not None:
            found = hashlib.sha256(model).hexdigest()
            if found != expected_sha256:
                raise TextError(
                    f"{path}: expected the tokenizer with SHA-256 {expected_sha256}, got {found}. "
                    "Use the file that came with the model."
                )
        return cls(model, lowercase=lowercase, null_prompt=null_prompt, where=str(path))

    def save(self, path: Path) -> None:
        with atomic_file(path) as file:
            file.write(self.model)

    def tokens(self, caption: str, max_tokens: int) -> list[int]:
        """Ids of one caption, at most max_tokens including the final eos."""
        in_range("max_tokens", max_tokens, 1, error=TextError)
        text = spelled(caption, lowercase=self.lowercase)
        # text may also normalise to nothing, as a zero-width space does
        ids = cast(list[int], self._processor.encode(text)) or self._null
        return [*ids[: max_tokens - 1], EOS_ID]

    def lengths(self, captions: Sequence[str], max_tokens: int) -> NDArray[np.int64]:
        """Number of tokens of each caption with its eos, at most max_tokens: (B,)."""
        return np.array([len(self.tokens(caption, max_tokens)) for caption in captions], np.int64)

    def unread(self, caption: str, max_tokens: int) -> Unread:
        """The parts of a caption that a model with `max_tokens` does not see."""
        text = spelled(caption, lowercase=self.lowercase)
        ids = cast(list[int], self._processor.encode(text))
        if len(ids) < max_tokens and UNK_ID not in ids:
            return Unread("", "")
        pieces = cast(list[str], self._processor.encode(text, out_type=str))
        cut = "".join(pieces[max_tokens - 1 :]).replace(SPACE, " ").strip()
        unknown = (p.strip(SPACE) for p, i in zip(pieces, ids, strict=True) if i == UNK_ID)
        return Unread(cut, "".join(dict.fromkeys("".join(unknown))))

    def encode(
        self, captions: Sequence[str], max_tokens: int, *, pad_to_max: bool = False
    ) -> TokenBatch:
        """Token ids of several captions; the empty caption is the null prompt.

        L is the longest of the batch, or max_tokens with pad_to_max.
        """
        if isinstance(captions, str) or not captions:
            raise TextError("captions: expected a list of at least one caption.")
        rows = [self.tokens(caption, max_tokens) for caption in captions]
        length = max_tokens if pad_to_max else max(map(len, rows))
        ids = np.full((len(rows), length), PAD_ID, np.int32)
        mask = np.zeros((len(rows), length), np.float32)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return TokenBatch(ids, mask)

    def _null_prompt(self, kind: NullPrompt, where: str) -> list[int]:
        """Tokens of the empty caption before its eos."""
        if kind == "end":
            return []
        piece = int(self._processor.piece_to_id(SPACE))
        if piece == UNK_ID:
            raise TextError(
                f"{where}: has no piece for a space, which the model's null prompt is; use the "
                "tokenizer that came with the model."
            )
        return [piece]


def train_tokenizer(
    captions: Iterable[str],
    vocab_size: int,
    path: Path | None = None,
    *,
    lowercase: bool,
    null_prompt: NullPrompt = "end",
) -> Tokenizer:
    """Train a unigram model of at most vocab_size pieces on the captions; write it to `path`.

    The same captions in the same order give the same bytes. A small set gives fewer pieces.
    Source: Kudo 2018 (arXiv:1804.10959).
    """
    import sentencepiece

    lines = [spelled(caption, lowercase=lowercase) for caption in captions]
    lines = [line for line in lines if line]
    if not lines:
        raise TextError("captions: expected at least one that is not empty, to train a tokenizer.")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            model_type="unigram",
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
            max_sentence_length=4 * MAX_CAPTION_CHARACTERS,  # bytes; longer ones would be skipped
            num_threads=1,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            minloglevel=2,  # suppress its own progress report
        )
    except (RuntimeError, OSError) as error:
        raise TextError(
            f"vocab_size: {vocab_size} pieces cannot be learned from these captions "
            f"({_reason(error)})."
        ) from None
    tokenizer = Tokenizer(written.getvalue(), lowercase=lowercase, null_prompt=null_prompt)
    if path is not None:
        tokenizer.save(path)
    return tokenizer


def _read_limited(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise TextError(f"{path}: no such tokenizer.")
        size = path.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise TextError(
                f"{path}: expected a tokenizer of at most {MAX_TOKENIZER_BYTES >> 20} MiB, "
                f"got {size} bytes."
            )
        with path.open("rb") as file:
            return file.read(MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise TextError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _load_processor(model: bytes, where: str) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(model) and processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError, ValueError):  # the last: a piece that is not UTF-8
        loaded = False
    if is_lfs_pointer(model[:64]):
        raise TextError(f"{where}: a Git LFS pointer, not the file itself; run git lfs pull.")
    if not loaded:
        raise TextError(f"{where}: not a SentencePiece model; expected one like T5's.")
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD_ID, EOS_ID, UNK_ID):
        raise TextError(
            f"{where}: expected a SentencePiece model with pad {PAD_ID}, eos {EOS_ID}, "
            f"unk {UNK_ID} as in T5, got {', '.join(map(str, ids))}."
        )
    return processor


def _reason(error: Exception) -> str:
    """The useful part of a SentencePiece message: after the source line, if any."""
    return str(error).rpartition("] ")[2].strip().rstrip(".") or "too little text"
