"""`mdm train`: what a run starts from, and what it refuses before it starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from small import save_random_model, trainable_model

from mdm_apple.cli import group
from mdm_apple.config.strict_json import to_json
from mdm_apple.errors import MdmError
from mdm_apple.storage.model_folder import load_model_config, load_weights


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(to_json(trainable_model()), encoding="utf-8")
    return path


def train(*arguments: str | Path) -> Result:
    asked = ["train", "--steps", "1", "--batch-size", "2", "--quiet", *map(str, arguments)]
    return CliRunner().invoke(group, asked)


def refusal(*arguments: str | Path) -> str:
    result = train(*arguments)
    assert isinstance(result.exception, MdmError), (result.exception, result.output)
    message = str(result.exception)
    assert message.endswith(".")
    return message


def test_init_brings_configuration_schedule_and_text_settings(
    pictures: Path, tmp_path: Path
) -> None:
    first, out = save_random_model(tmp_path / "first", trainable_model()), tmp_path / "tuned"
    result = train("--init", first, "--data", pictures, "--out", out, "--json", "--lr", "1e-9")
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout) == {"out": str(out), "steps": 1}
    assert (out / "config.json").read_bytes() == (first / "config.json").read_bytes()
    assert (out / "tokenizer.model").read_bytes() == (first / "tokenizer.model").read_bytes()
    for which in ("model", "text_encoder"):
        before, after = load_weights(first, which), load_weights(out, which)  # type: ignore[arg-type]
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, atol=1e-7)


def test_a_dry_run_prints_the_settings_and_makes_nothing(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = train(
        "--config",
        config_file,
        "--data",
        "twemoji",
        "--out",
        out,
        "--dry-run",
        "--json",
        "--no-ema",
    )
    assert result.exit_code == 0, result.exception
    settings = json.loads(result.stdout)
    assert settings["train"]["steps"] == 1
    assert settings["train"]["ema_decay"] is None
    assert settings["model"]["side"] == 8
    memory = settings["memory"]
    assert memory["ema"] == 0
    assert memory["optimizer"] == 2 * memory["gradients"]
    assert memory["largest_batch"] > 2
    assert not out.exists()


def test_a_dry_run_names_levels_of_clips_by_frames_and_side(tmp_path: Path) -> None:
    """A canvas of 128 px is no picture of that size."""
    asked = ["--data", "motion", "--out", tmp_path / "out", "--dry-run"]
    said = train("--preset", "motion", *asked, "--steps", "5").stdout
    assert "16x32 > 16x16 > 1x16 px; 5 steps of 2 clips" in said
    assert "128" not in said.split(";")[0]
    assert "clips at once" in said
    said = train("--preset", "emoji", *asked, "--steps", "5").stdout
    assert "64 > 32 > 16 px; 5 steps of 2 pictures" in said


def test_a_dry_run_states_the_largest_batch_of_a_machine(config_file: Path, tmp_path: Path) -> None:
    asked = ["--config", config_file, "--data", "twemoji", "--out", tmp_path / "out", "--dry-run"]
    found = {}
    for gigabytes in ("0.01", "1", "2"):
        for recompute in ("False", "True"):
            more = ("--json", "--memory", gigabytes, "--checkpointing", recompute)
            memory = json.loads(train(*asked, *more).stdout)["memory"]
            found[gigabytes, recompute] = memory["largest_batch"]
    assert found["0.01", "False"] == 0
    assert 1 < found["1", "False"] < found["2", "False"] < found["2", "True"]
    by_itself = {}
    for gigabytes, batch in (("1", "2"), ("1", "100000"), ("8000", "100000")):
        more = ("--json", "--memory", gigabytes, "--batch-size", batch)
        by_itself[gigabytes, batch] = json.loads(train(*asked, *more).stdout)["train"]
    recomputes = {key: settings["checkpointing"] for key, settings in by_itself.items()}
    assert recomputes == {("1", "2"): False, ("1", "100000"): True, ("8000", "100000"): False}
    text = train(*asked, "--memory", "1").stdout
    assert "computed, not measured" in text
    assert "averages" in text


def test_one_source_of_settings_is_asked_for(config_file: Path, tmp_path: Path) -> None:
    rest = ["--data", "twemoji", "--out", tmp_path / "out"]
    assert "either a preset or a config" in refusal(*rest)
    assert "either a preset or a config" in refusal(
        "--preset", "tiny", "--config", config_file, *rest
    )
    assert "brings its own configuration" in refusal(
        "--preset", "tiny", "--init", tmp_path / "first", *rest
    )


def test_a_folder_that_holds_something_is_left_alone(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    message = refusal("--config", config_file, "--data", "twemoji", "--out", out)
    assert "choose another --out or add --overwrite" in message
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "twemoji", "--batch-size", "3", "--accumulate", "4"], "accumulate: "),
        (["--data", "twemoji", "--validation-share", "1.5"], "validation_share: "),
        (["--data", "twemoji", "--resume"], "no such model folder"),
        (["--data", "twemoji", "--features", __file__], "features: this model trains its own text"),
    ],
)
def test_a_run_that_cannot_start_is_refused_and_makes_nothing(
    config_file: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    out = tmp_path / "out"
    assert expected in refusal("--config", config_file, "--out", out, *arguments)
    assert not out.exists()


@pytest.mark.parametrize("option", ["--clip-norm", "--lr", "--beta2", "--weight-decay"])
@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_settings_that_are_no_sensible_number_are_refused(
    config_file: Path, tmp_path: Path, option: str, value: str
) -> None:
    out = tmp_path / "out"
    result = train("--config", config_file, "--data", "twemoji", "--out", out, option, value)
    assert result.exit_code != 0
    assert not out.exists()


def test_resuming_as_another_model_is_refused(
    config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train("--config", config_file, "--data", pictures, "--out", out).exit_code == 0
    again = ("--data", pictures, "--out", out, "--resume")
    assert "a different model" in refusal("--preset", "tiny", *again)
    assert "order: applies to an index of shards" in refusal(*again, "--order", "lanes")
    assert train("--config", config_file, *again).exit_code == 0


def test_a_resumed_run_needs_no_setting_again(
    config_file: Path, pictures: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    start = ["--config", config_file, "--data", pictures, "--lr", "3e-4", "--seed", "9"]
    assert train(*start, "--no-ema", "--out", whole, "--steps", "3").exit_code == 0
    assert train(*start, "--no-ema", "--out", out, "--steps", "2").exit_code == 0
    more = ["train", "--resume", "--out", str(out), "--steps", "3", "--quiet"]
    result = CliRunner().invoke(group, more)
    assert result.exit_code == 0, result.exception
    assert (out / "hashes.json").read_bytes() == (whole / "hashes.json").read_bytes()
    changed = CliRunner().invoke(group, [*more, "--lr", "1e-3"])
    assert "lr: the run in" in str(changed.exception)


def test_one_command_starts_and_goes_on(config_file: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ["--config", config_file, "--data", pictures, "--out", out, "--resume", "auto"]
    for _ in range(2):
        assert train(*asked).exit_code == 0
    started = save_random_model(tmp_path / "first", trainable_model())
    asked = ["--init", started, "--data", pictures, "--out", tmp_path / "b", "--resume", "auto"]
    for _ in range(2):
        assert train(*asked).exit_code == 0
    assert train("--resume", "auto", "--out", tmp_path / "c").exit_code == 2  # nothing says what


def test_a_grid_on_a_short_table_takes_the_steps_there_are(pictures: Path, tmp_path: Path) -> None:
    model = trainable_model()
    schedule = dataclasses.replace(model.diffusion.schedule, num_steps=10)
    diffusion = dataclasses.replace(model.diffusion, schedule=schedule)
    path, out = tmp_path / "short.json", tmp_path / "run"
    path.write_text(to_json(dataclasses.replace(model, diffusion=diffusion)), encoding="utf-8")
    result = train("--config", path, "--data", pictures, "--out", out, "--sample-every", "1")
    assert result.exit_code == 0, result.exception
    assert (out / "samples" / "step_0000001.png").is_file()


def test_a_run_records_that_its_batches_were_mixed(pictures: Path, tmp_path: Path) -> None:
    model = trainable_model()
    levels = len(model.sides)
    diffusion = dataclasses.replace(model.diffusion, mixed_ratio=(1.0,) * levels)
    path, out = tmp_path / "mixed.json", tmp_path / "run"
    path.write_text(to_json(dataclasses.replace(model, diffusion=diffusion)), encoding="utf-8")
    assert train("--config", path, "--data", pictures, "--out", out).exit_code == 0
    assert load_model_config(out).mixed_training
