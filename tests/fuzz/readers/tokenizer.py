"""A SentencePiece model, and what it makes of a caption."""

from __future__ import annotations

from pathlib import Path

from mdm_apple.text.tokenizer import Tokenizer

CAPTION = "\uff27rinning face \u65e5\u672c\u8a9e \u00ad and a cat"


def read(folder: Path, data: bytes) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(data)
    tokenizer = Tokenizer.load(path)
    tokenizer.encode([CAPTION, ""], 16)
    tokenizer.unread(CAPTION, 4)
