"""Captions to tokens: against T5's own vocabulary and the original's ids, and on hostile input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import emoji
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import MAX_TOKENIZER_BYTES
from mdm_apple.text.captions import clean_caption, read_captions
from mdm_apple.text.t5_positions import relative_buckets
from mdm_apple.text.tokenizer import (
    EOS_ID,
    MAX_CAPTION_CHARACTERS,
    PAD_ID,
    UNK_ID,
    TextError,
    Tokenizer,
    spelled,
    train_tokenizer,
)

MAX_TOKENS = 16

# Texts of the original's table where SentencePiece, which T5 was trained with, rightly differs from
# the original's trie: characters outside the vocabulary are one <unk> instead of nothing, the names
# of special tokens in a caption are plain text, and runs of spaces and tabs count once.
DIFFERS_BY_DESIGN = {
    "",
    " ",
    "café naïve 日本語",
    "UPPER lower 1234567890 <pad> </s>",
    "tab\tand  double  spaces",
    "😀 emoji",
}


def golden_tokenizer_folders() -> list[Path]:
    named = [Path(p) for p in os.environ.get("MDM_GOLDEN", "").split(os.pathsep) if p]
    folders = [folder / "tokenizer" for folder in (Path(__file__).parent / "golden", *named)]
    return [folder for folder in folders if folder.is_dir()]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    names = {entry["en"].strip(":").replace("_", " ") for entry in emoji.EMOJI_DATA.values()}
    return sorted(name for name in names if "skin tone" not in name)


@pytest.fixture(scope="session")
def tokenizer(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(captions, 1500, path, lowercase=True)


def t5_model(folder: Path, base: Tokenizer) -> bytes:
    """T5's pieces in a SentencePiece model; `base` lends its nmt_nfkc normaliser."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(base.model)
    del proto.pieces[:]
    kinds = {PAD_ID: 3, EOS_ID: 3, UNK_ID: 2}  # control, control, unknown
    for index, line in enumerate((folder / "t5.vocab").read_text("utf-8").splitlines()):
        piece, score = line.split("\t")
        kind = kinds.get(index, 4 if piece.startswith("<extra_id_") else 1)
        proto.pieces.add(piece=piece, score=float(score), type=kind)
    return proto.SerializeToString()


@pytest.fixture(scope="session", params=golden_tokenizer_folders(), ids=str)
def t5(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[Tokenizer, dict[str, Any]]:
    folder: Path = request.param
    table = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return Tokenizer(t5_model(folder, tokenizer)), table


def test_tokens_equal_the_originals_wherever_every_character_is_known(
    t5: tuple[Tokenizer, dict[str, Any]],
) -> None:
    tokenizer, table = t5
    assert tokenizer.vocab_size == table["vocab_size"] == 32_100
    (run,) = [r for r in table["runs"] if r["reader"].get("max_caption_length") == 512]
    compared = 0
    for text, expected in zip(table["texts"], run["tokens"], strict=True):
        got = tokenizer.tokens(text, 128)
        if text in DIFFERS_BY_DESIGN:
            assert got != expected, text
        elif expected[-1] != EOS_ID:  # the original cuts eos off a caption that is too long
            assert got == [*expected[:127], EOS_ID]
        else:
            assert got == expected, text
        compared += text not in DIFFERS_BY_DESIGN
    assert compared >= 40


def test_a_batch_is_padded_like_the_originals(t5: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer, table = t5
    for run in table["runs"]:
        if "append_eos" in run["reader"] or "max_token_length" not in run["reader"]:
            continue
        length = run["reader"]["max_token_length"]
        to_max = run["reader"].get("pad_to_max_length", False)
        batch = tokenizer.encode(run["batch_pair"]["texts"], length, pad_to_max=to_max)
        expected = np.array(run["batch_pair"]["tokens"])
        np.testing.assert_array_equal(batch.ids, expected)
        np.testing.assert_array_equal(batch.mask, expected != PAD_ID)


def test_unknown_characters_are_unk_and_names_of_special_tokens_are_text(
    t5: tuple[Tokenizer, dict[str, Any]],
) -> None:
    tokenizer, _ = t5
    assert tokenizer.tokens("日本語", 8) == [3, UNK_ID, EOS_ID]
    ids = tokenizer.tokens("</s> <pad>", 64)
    assert PAD_ID not in ids
    assert ids.count(EOS_ID) == 1


def test_training_twice_gives_the_same_bytes(captions: list[str], tmp_path: Path) -> None:
    first = train_tokenizer(captions, 1500, tmp_path / "a.model", lowercase=True)
    second = train_tokenizer(iter(captions), 1500, tmp_path / "other.model", lowercase=True)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "other.model").read_bytes()
    assert first.sha256 == second.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "other.model"]


def test_training_in_another_process_gives_the_same_bytes(
    captions: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    code = (
        "import json, sys; from pathlib import Path\n"
        "from mdm_apple.text.tokenizer import train_tokenizer\n"
        "folder = Path(sys.argv[1])\n"
        "captions = json.loads((folder / 'captions.json').read_text())\n"
        "print(train_tokenizer(captions, 1500, folder / 'x.model', lowercase=True).sha256)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == tokenizer.sha256


def test_the_emoji_vocabulary_tells_every_caption_apart_within_16_tokens(
    captions: list[str], tokenizer: Tokenizer
) -> None:
    assert 1200 <= tokenizer.vocab_size <= 1500
    rows = [tokenizer.tokens(caption, MAX_TOKENS) for caption in captions]
    cut = sum(len(tokenizer.tokens(caption, 64)) > MAX_TOKENS for caption in captions)
    assert cut <= 1  # the longest name, an island group, is one token too long
    assert not any(UNK_ID in row for row in rows)
    different = {spelled(caption, lowercase=True) for caption in captions}
    assert len({tuple(row) for row in rows}) == len(different)


def test_a_saved_tokenizer_is_the_same_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    tokenizer.save(path)
    again = Tokenizer.load(path, lowercase=True, expected_sha256=tokenizer.sha256)
    assert again.sha256 == tokenizer.sha256
    assert again.tokens("Grinning Face", 16) == tokenizer.tokens("grinning face", 16)


def test_case_matters_unless_the_configuration_lowers_it(tokenizer: Tokenizer) -> None:
    exact = Tokenizer(tokenizer.model)
    assert exact.tokens("Cat", 16) != exact.tokens("cat", 16)
    assert tokenizer.tokens("Cat", 16) == exact.tokens("cat", 16)


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\x00", "\u2028"])
def test_the_null_prompt_is_eos_alone(tokenizer: Tokenizer, empty: str) -> None:
    assert tokenizer.tokens(empty, MAX_TOKENS) == [EOS_ID]
    batch = tokenizer.encode([empty, "cat"], MAX_TOKENS)
    assert batch.ids[0].tolist() == [EOS_ID] + [PAD_ID] * (batch.ids.shape[1] - 1)
    assert batch.mask.sum(axis=1).tolist() == [1, np.count_nonzero(batch.ids[1])]


@pytest.mark.parametrize("limit", [1, 2, 5, 16])
def test_truncation_keeps_eos_and_the_first_tokens(tokenizer: Tokenizer, limit: int) -> None:
    long = "kiss: person, person, red heart " * 10
    whole = tokenizer.tokens(long, 4096)
    cut = tokenizer.tokens(long, limit)
    assert len(whole) > 16
    assert cut == [*whole[: limit - 1], EOS_ID]


def test_batches_have_the_length_of_the_longest_or_the_limit(tokenizer: Tokenizer) -> None:
    pair = ["cat", "flag: united states of america"]
    lengths = [len(tokenizer.tokens(caption, MAX_TOKENS)) for caption in pair]
    batch = tokenizer.encode(pair, MAX_TOKENS)
    assert batch.ids.shape == batch.mask.shape == (2, max(lengths))
    assert batch.ids.dtype == np.int32
    assert batch.mask.dtype == np.float32
    full = tokenizer.encode(pair, MAX_TOKENS, pad_to_max=True)
    assert full.ids.shape == (2, MAX_TOKENS)
    assert full.mask.sum(axis=1).tolist() == lengths
    np.testing.assert_array_equal(full.ids == PAD_ID, full.mask == 0)


def test_control_characters_and_line_ends_count_as_spaces(tokenizer: Tokenizer) -> None:
    plain = tokenizer.tokens("red heart", 16)
    for odd in ("red\nheart", "red\x00heart", "\x1bred \x85 heart\r\n", "red\u2029heart\ud800"):
        assert tokenizer.tokens(odd, 16) == plain, ascii(odd)


def test_pictures_and_prompts_are_cleaned_alike(tokenizer: Tokenizer) -> None:
    for odd in ("red\x07heart", "red \u202eheart\u202c", "\ufeffred\u2066 heart", "red\u2028heart"):
        assert clean_caption(odd) == "red heart", ascii(odd)
        assert spelled(odd, lowercase=False) == "red heart", ascii(odd)
        assert tokenizer.tokens(odd, 16) == tokenizer.tokens("red heart", 16)


@pytest.mark.parametrize("lines", ["\ufeffred heart\r\n", "red  heart\n\n", "  red\theart \u200e"])
def test_a_list_of_captions_is_cleaned_like_the_captions_of_pictures(
    lines: str, tmp_path: Path
) -> None:
    """A byte order mark or a second space does not keep a caption from its picture."""
    (tmp_path / "list.txt").write_text(f"{lines}blue star", encoding="utf-8", newline="")
    expected = ("red heart", "blue star") if lines.endswith("\n") else ("red heart blue star",)
    assert read_captions(tmp_path / "list.txt") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give a text file with one caption per line."),
        (b"\xff\xfe", "cannot be read as UTF-8 text"),
        (b"\xef\xbb\xbf \r\n\n", "holds no caption; expected one per line."),
    ],
)
def test_a_list_of_captions_that_cannot_be_used_is_refused_with_its_reason(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MdmError) as caught:
        read_captions(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_lower_casing_ignores_the_context_of_a_letter() -> None:
    assert spelled("ΟΔΟΣ", lowercase=True) == "οδοσ"  # str.lower() would end it in ς
    assert spelled("  A\u00a0 b ", lowercase=False) == "A b"


def test_hostile_captions_are_refused_in_one_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match="at most 65536 characters, got 65537"):
        tokenizer.tokens("a" * (MAX_CAPTION_CHARACTERS + 1), 16)
    with pytest.raises(TextError, match="expected text, got bytes"):
        tokenizer.encode([b"cat"], 16)  # type: ignore[list-item]
    with pytest.raises(TextError, match="expected a list"):
        tokenizer.encode("cat", 16)
    with pytest.raises(TextError, match="at least one caption"):
        tokenizer.encode([], 16)
    with pytest.raises(TextError, match="max_tokens: expected 1 or more, got 0"):
        tokenizer.tokens("cat", 0)
    assert len(tokenizer.tokens("\ud800 \U0010ffff" * 1000, 16)) == 16


def test_files_that_are_no_tokenizer_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "bad.model"
    model = tokenizer.model
    for content in (b"", b"x", b"\x80\x04.", model[: len(model) // 2], model[1:], bytes(9999)):
        path.write_bytes(content)
        with pytest.raises(TextError, match=r"bad\.model: .*SentencePiece model"):
            Tokenizer.load(path)


def test_missing_large_and_exchanged_files_are_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match="no such tokenizer"):
        Tokenizer.load(tmp_path / "none.model")
    with pytest.raises(TextError, match="no such tokenizer"):
        Tokenizer.load(tmp_path)
    with (tmp_path / "huge.model").open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(TextError, match="at most 16 MiB"):
        Tokenizer.load(tmp_path / "huge.model")
    tokenizer.save(tmp_path / "t.model")
    with pytest.raises(TextError, match="expected the tokenizer with SHA-256 0000"):
        Tokenizer.load(tmp_path / "t.model", expected_sha256="0" * 64)


def test_a_model_with_other_special_ids_is_refused(tokenizer: Tokenizer) -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.model)
    proto.pieces[0].piece, proto.pieces[1].piece = "</s>", "<pad>"
    with pytest.raises(TextError, match="expected a SentencePiece model with pad 0, eos 1, unk 2"):
        Tokenizer(proto.SerializeToString())


def test_training_refuses_what_cannot_be_learned(captions: list[str], tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    with pytest.raises(TextError, match="at least one that is not empty"):
        train_tokenizer(["", "\n"], 100, path, lowercase=True)
    with pytest.raises(TextError, match="vocab_size: 20 pieces cannot be learned"):
        train_tokenizer(captions, 20, path, lowercase=True)
    assert not path.exists()
    assert train_tokenizer(["a"], 1500, path, lowercase=True).vocab_size < 10


def test_training_into_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdmError, match="cannot be written"):
        train_tokenizer(["a cat"], 100, tmp_path / "none" / "t.model", lowercase=True)


def test_damaged_models_never_end_the_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Flipped bytes load or are refused; a crash in the library would kill this child process."""
    tokenizer.save(tmp_path / "t.model")
    code = (
        "import random, sys; from pathlib import Path\n"
        "from mdm_apple.text.tokenizer import TextError, Tokenizer\n"
        "model, generator = Path(sys.argv[1]).read_bytes(), random.Random(0)\n"
        "refused = 0\n"
        "for _ in range(150):\n"
        "    damaged = bytearray(model)\n"
        "    for _ in range(generator.choice([1, 8, 64])):\n"
        "        damaged[generator.randrange(len(model))] = generator.randrange(256)\n"
        "    try:\n"
        "        Tokenizer(bytes(damaged)).tokens('\\uff27rinning face 日本語 \\u00ad', 16)\n"
        "    except TextError:\n"
        "        refused += 1\n"
        "print(refused)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.model")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-500:]
    assert 0 < int(run.stdout) < 150


def test_relative_buckets_are_those_of_the_paper() -> None:
    table = relative_buckets(300, 32, 128)
    behind, ahead = table[:, 0], table[0]
    assert behind[:8].tolist() == list(range(8))
    assert ahead[1:8].tolist() == list(range(17, 24))
    assert [int(behind[d]) for d in (8, 11, 12, 16, 32, 64, 90, 91, 128, 299)] == [
        8, 8, 9, 10, 12, 14, 14, 15, 15, 15,
    ]  # fmt: skip
    assert (np.diff(behind) >= 0).all()
    np.testing.assert_array_equal(table[5:, 5:], table[:-5, :-5])  # depends on the distance only
