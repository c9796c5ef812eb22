"""What a model does not see of its captions is said at every door."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from malformed import frozen_model
from small import CAPTIONS, save_random_model, trainable_model

import mdm_apple as mdm
from mdm_apple.cli import group
from mdm_apple.text.tokenizer import Tokenizer, train_tokenizer
from mdm_apple.text.unread import unread_remarks
from mdm_apple.training.settings import TrainConfig

LONG = " ".join(["red heart"] * 60)
UNKNOWN = "red \u732b heart"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 64, lowercase=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_random_model(tmp_path / "model", trainable_model())


@pytest.fixture
def frozen(tmp_path: Path) -> tuple[Path, Path]:
    """A model without its frozen encoder, and the folder of that encoder."""
    encoder = tmp_path / "encoder"
    return frozen_model(tmp_path / "frozen", encoder), encoder


def command(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, [str(a) for a in arguments])
    assert result.exit_code == 0, result.exception or result.output
    return result


def test_one_cut_prompt_is_shown_and_several_are_counted(tokenizer: Tokenizer) -> None:
    (one,) = unread_remarks("prompt", ["red", LONG], tokenizer, 8)
    assert one.startswith("prompt: the model reads 8 tokens, so it does not see '")
    (several,) = unread_remarks("prompt", ["red", LONG, "cat " + LONG], tokenizer, 8)
    assert several.startswith("prompt: 2 of 3 are longer than the 8 tokens that the model reads")
    assert unread_remarks("prompt", ["red", LONG], tokenizer, 1000) == []


def test_unknown_characters_of_all_captions_are_named_with_a_count(tokenizer: Tokenizer) -> None:
    (remark,) = unread_remarks("captions", ["red", UNKNOWN, "\u72ac"], tokenizer, 100)
    assert remark == (
        "captions: 2 of 3 hold characters that the model knows no token for: '\u732b\u72ac'."
    )
    assert unread_remarks("captions", ["red"], tokenizer, 100) == []


def test_sample_reads_the_tokenizer_of_a_given_encoder(
    frozen: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, encoder = frozen
    asked = ["sample", UNKNOWN, LONG, "--model", folder, "--text-encoder", encoder, "--seed", "1"]
    said = command(*asked, "--backend", "torch", "--steps", "1", "--out", tmp_path / "out").stderr
    assert "the model knows no token for '\u732b'" in said
    assert "does not see" in said


def test_a_call_of_a_model_warns_and_a_short_prompt_does_not(model: Path) -> None:
    loaded = mdm.load(model, backend="torch")
    with pytest.warns(UserWarning, match="the model reads 8 tokens") as caught:
        loaded(LONG, seed=1, steps=1)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="no token for") as caught:
        list(loaded.steps("\u732b", seed=1, steps=1))
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded("a", seed=1, steps=1)


def test_training_with_a_frozen_encoder_names_what_it_does_not_know(
    frozen: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    folder, encoder = frozen
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    (data / "03.txt").write_text(UNKNOWN, encoding="utf-8")
    (data / "04.txt").write_text(LONG)
    said = list[str]()
    mdm.train(
        data, tmp_path / "run", steps=1, init=folder, text_encoder=encoder, backend="torch",
        say=said.append,
    )  # fmt: skip
    (cut, unknown) = [text for text in said if text.startswith("captions: ")]
    assert "of 16 are longer than the 8 tokens" in cut
    assert unknown.endswith("knows no token for: '\u732b'.")


def test_embed_says_what_is_cut_and_unknown(frozen: tuple[Path, Path], tmp_path: Path) -> None:
    folder, encoder = frozen
    asked = ["embed", "--model", folder, "--text-encoder", encoder, "--backend", "torch"]
    prompts = ["--prompt", LONG, "--prompt", UNKNOWN, "--out", tmp_path / "features"]
    said = command(*asked, *prompts).stderr
    assert "captions: 2 of 2 are longer than" in said
    assert "knows no token for: '\u732b'." in said


def test_embed_reads_bytes_of_utf_8_and_refuses_others(
    frozen: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, encoder = frozen
    asked = ["embed", "--model", folder, "--text-encoder", encoder, "--backend", "torch"]
    out = tmp_path / "features"
    good = "caf\u00e9 x".encode().decode("ascii", "surrogateescape")
    said = command(*asked, "--prompt", good, "--out", out).stderr
    assert "knows no token for: '\u00e9x'" in said
    out.unlink()
    arguments = [str(a) for a in (*asked, "--prompt", "caf\udce9 x", "--out", out)]
    refused = CliRunner().invoke(group, arguments)
    assert "prompt: 'caf\\udce9 x' is not UTF-8 text" in str(refused.exception)
    assert not out.exists()


def test_a_distillation_says_what_its_student_does_not_see(model: Path, tmp_path: Path) -> None:
    listed = tmp_path / "captions.txt"
    listed.write_text(f"red heart\n{LONG}\n{UNKNOWN}\n", encoding="utf-8")
    said = list[str]()
    settings = TrainConfig(steps=1, batch_size=2)
    mdm.distill(
        model, tmp_path / "student", settings=settings, captions=listed, backend="torch",
        say=said.append,
    )  # fmt: skip
    assert any("of 3 are longer than the 8 tokens" in text for text in said)
    assert any(text.endswith("knows no token for: '\u732b'.") for text in said)
