"""Captions, tokens and pieces in Swift are those of Python and of sentencepiece, on new texts."""

from __future__ import annotations

import importlib
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from swift_tools import Dump

from mdm_apple.bundled_models import EMOJI
from mdm_apple.text.tokenizer import spelled, train_tokenizer

FIXED = [
    "",
    " ",
    "   ",
    "\t",
    "\n",
    "a",
    "red heart",
    "  two   spaces  ",
    "tab\tand\nline",
    "ﬁne ﬂow",
    "\uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48",
    "①②③ ½ ㎏ ™",
    "e\u0301 cafe\u0301 \u0301",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️",
    "مرحبا بالعالم",
    "שלום עולם",
    "日本語のテキスト 中文",
    "한국어 각",
    "\u200b\u200d\ufeff",
    "a\u00adb",
    "\u0000x\u0000",
    "▁under▁score",
    "x" * 5000,
    "ab " * 3000,
    "<unk> </s> <pad>",
    "ǅ ẞ İ \u0131 \u017f",
    "ﷺ",
    "\u2581",
    "\u3000ideographic\u3000",
    "\ufffd",
    "\U0010ffff",
    "🫠" * 50,
    "aaaaaaaaaaaaaaaaaaaaaaaaa",
]
RANGES = [
    (0x20, 0x7E, 8),
    (0x00, 0x1F, 1),
    (0xA0, 0x24F, 3),
    (0x300, 0x36F, 2),
    (0x370, 0x52F, 1),
    (0x590, 0x6FF, 2),
    (0x900, 0xDFF, 1),
    (0x1100, 0x11FF, 1),
    (0x1E00, 0x20CF, 2),
    (0x2100, 0x2BFF, 1),
    (0x3000, 0x30FF, 1),
    (0x3300, 0x33FF, 1),
    (0x4E00, 0x9FFF, 1),
    (0xAC00, 0xD7A3, 1),
    (0xF900, 0xFFFD, 2),
    (0x1D400, 0x1D7FF, 1),
    (0x1F300, 0x1FAFF, 3),
    (0xE0001, 0xE007F, 1),
]


def random_texts(count: int, words: list[str]) -> list[str]:
    """New ones at each run: words, known and not, mixed with characters from all over Unicode."""
    chosen = random.SystemRandom()
    weights = [w for _, _, w in RANGES]

    def part() -> str:
        if words and chosen.random() < 0.4:
            return chosen.choice(words)
        low, high, _ = chosen.choices(RANGES, weights)[0]
        drawn = [chr(chosen.randint(low, high)) for _ in range(chosen.randint(1, 6))]
        return "".join(drawn) + (" " if chosen.random() < 0.5 else "")

    return ["".join(part() for _ in range(chosen.randint(1, 12))) for _ in range(count)]


def read_proto(model: bytes) -> Any:
    """The model as protocol buffer, to be changed."""
    module: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    return module.ModelProto.FromString(model)


def compare(dump: Dump, model: Path, texts: list[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    answers = dump.json("tokens", model, given=texts)
    assert len(answers) == len(texts)
    for text, answer in zip(texts, answers, strict=True):
        assert answer["ids"] == processor.encode(text), ascii(text)
        assert answer["pieces"] == processor.encode(text, out_type=str), ascii(text)


def test_tokens_and_pieces_are_those_of_sentencepiece(dump: Dump) -> None:
    words = (EMOJI / "captions.txt").read_text(encoding="utf-8").split()
    compare(dump, EMOJI / "tokenizer.model", FIXED + random_texts(1500, words))


def test_equal_scores_are_decided_alike(dump: Dump, tmp_path: Path) -> None:
    """A model of two letters with rounded scores: almost every text has several best ways."""
    model = tmp_path / "ties.model"
    chosen = random.SystemRandom()
    lines = ["".join(chosen.choice("ab") for _ in range(chosen.randint(1, 9))) for _ in range(400)]
    tokenizer = train_tokenizer(lines, 40, model, lowercase=False)
    proto = read_proto(tokenizer.model)
    for piece in proto.pieces:
        if piece.type == 1:
            piece.score = -float(max(1, len(piece.piece.replace("\u2581", "")))) * 0.7
    model.write_bytes(proto.SerializeToString())
    texts = [
        "".join(chosen.choice("abc ") for _ in range(chosen.randint(1, 60))) for _ in range(500)
    ]
    compare(dump, model, texts)


def test_the_comparison_notices_another_model(dump: Dump, tmp_path: Path) -> None:
    proto = read_proto((EMOJI / "tokenizer.model").read_bytes())
    longest = max((p for p in proto.pieces if p.type == 1), key=lambda p: len(p.piece))
    text = longest.piece.replace("\u2581", " ").strip()
    before = dump.json("tokens", EMOJI / "tokenizer.model", given=[text])
    longest.score -= 50
    (tmp_path / "other.model").write_bytes(proto.SerializeToString())
    assert dump.json("tokens", tmp_path / "other.model", given=[text]) != before


def test_captions_are_cleaned_and_lowered_alike(dump: Dump) -> None:
    texts = FIXED + random_texts(1000, ["Red", "HEART"])
    # Characters that only a newer Unicode knows have categories and cases in one of the two.
    texts = [t for t in texts if not any(unicodedata.category(c) == "Cn" for c in t)]
    answers = dump.json("captions", given=texts)
    for text, (plain, lower) in zip(texts, answers, strict=True):
        assert plain == spelled(text, lowercase=False), ascii(text)
        assert lower == spelled(text, lowercase=True), ascii(text)


@pytest.mark.parametrize("damage", ["bpe", "other ids"])
def test_other_models_are_refused_with_a_sentence(dump: Dump, tmp_path: Path, damage: str) -> None:
    proto = read_proto((EMOJI / "tokenizer.model").read_bytes())
    if damage == "bpe":
        proto.trainer_spec.model_type = 2
    else:
        del proto.pieces[0]
    (tmp_path / "other.model").write_bytes(proto.SerializeToString())
    done = dump.run("tokens", tmp_path / "other.model", given=["a"])
    assert done.returncode == 1
    assert b"tokenizer: " in done.stderr
