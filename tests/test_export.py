"""`mdm export`: averaged weights alone, rounded, with what is known of their origin."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small import CAPTIONS, random_state, random_weights, trainable_model

from mdm_apple.bundled_models import EMOJI_STUDENT
from mdm_apple.cli import group
from mdm_apple.config.model import Provenance
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.errors import ConfigError, MdmError
from mdm_apple.sampling.settings import (
    SAMPLING,
    SamplingDefaults,
    read_sampling,
    student_sampling,
    write_sampling,
)
from mdm_apple.storage.atomic_folder import CheckpointError
from mdm_apple.storage.model_folder import (
    Training,
    load_model_config,
    load_tokenizer,
    load_weights,
    save_model,
)
from mdm_apple.storage.tensorfile import read_tensors
from mdm_apple.text.tokenizer import train_tokenizer
from mdm_apple.training.export import STORAGE, export_model

NOTHING = Provenance()
SAID = Provenance(license="CC-BY-4.0", source="these pictures", notes="sixteen of them")


def mdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it ends: weights and their averages differ, and a state to resume from."""
    config = trainable_model()
    assert config.text is not None
    assert config.text.encoder is not None
    encoder = config.text.encoder
    tokenizer = train_tokenizer(CAPTIONS, encoder.vocab_size, lowercase=True)
    text = dataclasses.replace(config.text, tokenizer_sha256=tokenizer.sha256)
    folder = tmp_path_factory.mktemp("trained") / "run"
    save_model(
        folder,
        dataclasses.replace(config, text=text, provenance=SAID),
        random_state(config.model, seed=1),
        ema=random_state(config.model, seed=2),
        text_encoder=random_weights(encoder_shapes(encoder), 3),
        text_encoder_ema=random_weights(encoder_shapes(encoder), 4),
        tokenizer=tokenizer.model,
        training=Training({"moments": np.ones(3, np.float32)}, {"step": 2}),
    )
    return folder


def test_weights_are_the_averages_rounded_to_16_bits(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path / "out", NOTHING)
    parts = ("model", "ema"), ("text_encoder", "text_encoder_ema")
    for part, average in parts:
        stored = read_tensors(tmp_path / "out" / f"{part}.safetensors")
        wanted = load_weights(trained, average)
        assert list(stored) == list(wanted)
        for name, value in wanted.items():
            assert stored[name].dtype == np.float16
            np.testing.assert_array_equal(stored[name], value.astype(np.float16))


def test_in_32_bits_the_averages_arrive_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    result = mdm("export", trained, "--precision", "fp32", "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.exception
    got = load_weights(tmp_path / "out")
    for name, value in load_weights(trained, "ema").items():
        assert got[name].tobytes() == value.tobytes()


def test_without_averages_the_weights_themselves_are_taken(
    model_folder: Path, tmp_path: Path
) -> None:
    export_model(model_folder, tmp_path / "out", NOTHING, "fp32")
    got = load_weights(tmp_path / "out")
    for name, value in load_weights(model_folder).items():
        np.testing.assert_array_equal(got[name], value)


def test_only_what_a_model_needs_travels(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path / "out", NOTHING)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "hashes.json",
        "model.safetensors",
        "text_encoder.safetensors",
        "tokenizer.model",
    }
    assert load_tokenizer(tmp_path / "out") == load_tokenizer(trained)


def test_what_is_said_of_the_origin_replaces_what_was_and_the_rest_stays(
    trained: Path, tmp_path: Path
) -> None:
    call = ("export", trained, "--license", "MIT", "--out", tmp_path / "out", "--quiet")
    assert mdm(*call).exit_code == 0
    config = load_model_config(tmp_path / "out")
    assert config.provenance == dataclasses.replace(SAID, license="MIT")
    before = load_model_config(trained)
    assert dataclasses.replace(config, provenance=before.provenance) == before
    all_three = ("--license", "a", "--source", "b", "--notes", "c")
    assert mdm("export", trained, *all_three, "--out", tmp_path / "two", "--quiet").exit_code == 0
    said = load_model_config(tmp_path / "two").provenance
    assert (said.license, said.source, said.notes) == ("a", "b", "c")


def test_a_folder_that_exists_is_left_as_it_is(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    result = mdm("export", trained, "--out", tmp_path, "--quiet")
    assert isinstance(result.exception, MdmError)
    assert "--overwrite" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_weight_beyond_16_bits_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    config = trainable_model()
    weights = random_state(config.model)
    weights["conv_in.bias"][0] = 1e6
    save_model(tmp_path / "large", config, weights)
    with pytest.raises(CheckpointError, match=r"conv_in\.bias"):
        export_model(tmp_path / "large", tmp_path / "out", NOTHING)
    assert {path.name for path in tmp_path.iterdir()} == {"large"}


def test_what_was_exported_samples_and_starts_a_run(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    assert mdm("export", trained, "--out", model, "--quiet").exit_code == 0
    few = ("--steps", "2", "--backend", "torch", "--quiet")
    place = ("--prompt", "red heart", "--out", tmp_path / "a.png")
    result = mdm("sample", "--model", model, *few, *place)
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "a.png").is_file()
    place = ("--data", pictures, "--out", tmp_path / "run", "--batch-size", "4", "--lr", "1e-9")
    result = mdm("train", "--init", model, *few, *place)
    assert result.exit_code == 0, result.exception
    begun = load_weights(tmp_path / "run")
    for name, value in load_weights(model).items():  # two steps that hardly move
        np.testing.assert_allclose(begun[name], value, atol=1e-7)


def test_without_anything_said_no_sampling_file_is_made_and_an_old_one_goes(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("--sampler", "dpmpp", "--steps", "20", "--guidance", "4")
    assert mdm("export", trained, *asked, "--out", out, "--quiet").exit_code == 0
    assert read_sampling(out, None) == SamplingDefaults("dpmpp", 20, 4.0)
    assert mdm("export", trained, "--out", out, "--overwrite", "--quiet").exit_code == 0
    assert not (out / SAMPLING).exists()


def test_what_suits_the_model_is_copied_and_completed(trained: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    write_sampling(model, SamplingDefaults("dpmpp", 20, 4.0))
    export_model(model, tmp_path / "copied", NOTHING)
    assert read_sampling(tmp_path / "copied", None) == SamplingDefaults("dpmpp", 20, 4.0)
    export_model(model, tmp_path / "guided", NOTHING, sampling=SamplingDefaults(guidance=2.0))
    assert read_sampling(tmp_path / "guided", None) == SamplingDefaults("dpmpp", 20, 2.0)
    export_model(trained, tmp_path / "steps", NOTHING, sampling=SamplingDefaults(steps=20))
    assert read_sampling(tmp_path / "steps", None) == SamplingDefaults("ddim", 20, None)
    export_model(model, tmp_path / "other", NOTHING, sampling=SamplingDefaults("ddim"))
    assert read_sampling(tmp_path / "other", None) == SamplingDefaults("ddim", None, 4.0)


def test_a_student_is_exported_with_a_single_step(tmp_path: Path) -> None:
    source = tmp_path / "student"
    shutil.copytree(EMOJI_STUDENT, source)
    (source / SAMPLING).unlink()
    distilled = load_model_config(source).distilled
    assert distilled is not None
    assert mdm("export", source, "--out", tmp_path / "out", "--quiet").exit_code == 0
    said = json.loads((tmp_path / "out" / SAMPLING).read_text())
    assert SamplingDefaults(**said) == student_sampling(distilled, steps=1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (SamplingDefaults("student"), "student"),
        (SamplingDefaults(steps=5000), "steps: expected 1 to 1000"),
    ],
)
def test_a_way_of_sampling_that_the_model_cannot_go_is_refused(
    asked: SamplingDefaults, says: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        export_model(trained, tmp_path / "out", NOTHING, sampling=asked)
    assert list(tmp_path.iterdir()) == []


def test_storage_is_as_precise_as_asked(trained: Path, tmp_path: Path) -> None:
    for precision, storage in STORAGE.items():
        out = tmp_path / precision
        call = ("export", trained, "--precision", precision, "--out", out, "--quiet")
        assert mdm(*call).exit_code == 0
        header = (out / "model.safetensors").read_bytes()[:4096].decode("latin-1")
        name = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[storage]
        assert f'"dtype":"{name}"' in header
