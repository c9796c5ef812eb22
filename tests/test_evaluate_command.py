"""`mdm evaluate`: numbers as JSON and as a file, pairs as a picture, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from small import save_random_model

from mdm_apple.api import evaluate, train
from mdm_apple.cli import group
from mdm_apple.config.presets import preset
from mdm_apple.errors import MdmError
from mdm_apple.training.settings import TrainConfig

FAST = ["--steps", "2", "--count", "6", "--backend", "torch", "--quiet"]


def mdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["evaluate", *FAST, *map(str, arguments)])


def refusal(*arguments: str | Path) -> str:
    result = mdm(*arguments)
    assert isinstance(result.exception, MdmError), (result.exception, result.output)
    return str(result.exception)


def test_scores_are_printed_and_written_with_what_made_them(
    model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    out, grid = tmp_path / "scores.json", tmp_path / "pairs.png"
    seeds = ["--eval-seed", "5", "--eval-seed", "9"]
    asked = ["--model", model_folder, "--data", pictures, *seeds, "--out", out, "--grid", grid]
    result = mdm(*asked, "--guidance", "3", "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert json.loads(out.read_text()) == report
    hashes = json.loads((model_folder / "hashes.json").read_text())
    assert report["model"]["sha256"] == hashes["model.safetensors"]["sha256"]
    assert report["settings"]["sampler"]["guidance_scale"] == 3.0
    assert (report["side"], report["compared_at"], report["gallery"]) == (16, 16, 16)
    assert list(report["seeds"]) == ["5", "9"]
    top5 = [scores["top5"] for scores in report["seeds"].values()]
    assert report["mean"]["top5"] == pytest.approx(np.mean(top5))
    assert report["worst"]["top5"] == min(top5)
    with Image.open(grid) as picture:
        assert picture.size == (6 * 128 + 5 * 6, 64)  # six pairs, enlarged, with gaps


def test_a_person_gets_lines_and_an_inner_level_says_its_side(
    model_folder: Path, pictures: Path
) -> None:
    result = mdm("--model", model_folder, "--data", pictures, "--stop-at", "8")
    assert result.exit_code == 0, result.exception
    assert "8 px compared at 8 px" in result.stdout
    assert "top-5" in result.stdout
    assert "not FID" in result.stdout


def test_captions_choose_the_gallery(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "captions.txt"
    chosen.write_text("red heart\n\nblue heart\ngreen apple\nsteaming bowl\n", encoding="utf-8")
    asked = ["--model", model_folder, "--data", pictures, "--captions", chosen]
    result = mdm(*asked, "--count", "4", "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert report["gallery"] == 4
    assert report["mean"]["top5"] == 1  # of four
    assert "at most 4" in refusal(*asked)


def test_impossible_requests_are_refused_and_leave_nothing(
    model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    rest = ["--out", tmp_path / "s.json", "--grid", tmp_path / "g.png"]
    model = ["--model", model_folder]
    data = ["--data", pictures]
    empty, binary = tmp_path / "in" / "empty.txt", tmp_path / "in" / "binary.txt"
    empty.parent.mkdir()
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe")
    for arguments, said in (
        ([*model, *data, "--count", "17"], "at most 16"),
        ([*model, *data, "--stop-at", "12"], "sides 16, 8, got 12"),
        ([*model, *data, "--eval-seed", "70000"], "eval-seed: expected 0 to 65535"),
        ([*model, *data, "--guidance", "nan"], "guidance: expected -100 to 100"),
        ([*model, "--data", tmp_path / "none"], "no such folder"),
        (["--model", tmp_path / "none", *data], "no such model"),
        ([*model, *data, "--captions", empty], "holds no caption"),
        ([*model, *data, "--captions", binary], "cannot be read as UTF-8"),
        ([*model, *data, "--captions", tmp_path / "none.txt"], "none.txt: no such file"),
    ):
        assert said in refusal(*arguments, *rest)
        assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_nothing_is_overwritten_unless_asked(
    model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    out.write_text("mine")
    asked = ["--model", model_folder, "--data", pictures, "--out", out]
    assert "add --overwrite" in refusal(*asked)
    assert out.read_text() == "mine"
    assert mdm(*asked, "--overwrite").exit_code == 0
    assert json.loads(out.read_text())["gallery"] == 16


def test_scenes_are_judged_row_by_row(tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    asked = ["evaluate", "--data", "scenes", "--count", "4", "--backend", "torch", "--quiet"]
    result = CliRunner().invoke(group, [*asked, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert json.loads(out.read_text()) == report
    assert report["data"] == {"name": "scenes"}
    assert report["rows"]["names"]["top5"]["share"] == 1, "box:student knows names"
    together = report["rows"]["together, held out"]
    assert set(together) == {"all", "thing", "number", "background"}
    assert together["all"]["count"] == 4
    assert 0 <= together["all"]["low"] <= together["all"]["share"] <= together["all"]["high"] <= 1
    assert together["all"]["hits"] <= together["thing"]["hits"]


def test_what_scenes_do_not_have_is_refused(model_folder: Path, tmp_path: Path) -> None:
    assert "64 px" in refusal("--model", model_folder, "--data", "scenes")
    grid = ["--grid", tmp_path / "g.png"]
    assert "leave out --grid" in refusal("--data", "scenes", *grid)
    assert "leave out --background" in refusal("--data", "scenes", "--background", "color")
    assert not (tmp_path / "g.png").exists()
    with pytest.raises(MdmError, match="drawn anew"):
        evaluate(str(model_folder), "scenes", count=4)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of clips, one step old, that saw three objects in two variants."""
    out = tmp_path_factory.mktemp("runs") / "moving"
    told = TrainConfig(steps=1, batch_size=3, sample_every=0)
    train("motion:3:2", out, settings=told, preset="tiny_video", backend="torch", quiet=True)
    return out


def test_clips_are_judged_by_the_objects_and_variants_of_training(moving: Path) -> None:
    for data in ("motion", "motion:3", "motion:3:2"):
        result = mdm("--model", moving, "--data", data, "--json")
        assert result.exit_code == 0, result.exception
        report = json.loads(result.stdout)
        assert report["data"] == {"name": "motion:3:2"}
        assert (report["settings"]["objects"], report["settings"]["variants"]) == (3, 2)
        assert report["rows"]["trained"]["pair"]["chance"] == pytest.approx(1 / 30)
    for data in ("motion:4", "motion:32", "motion:3:8"):
        message = refusal("--model", moving, "--data", data)
        assert f"was trained on motion:3:2, not on {data}" in message
        assert message.endswith("give --data motion:3:2.")


def test_a_model_that_saw_what_is_held_out_is_refused(moving: Path, tmp_path: Path) -> None:
    """A student has its teacher's captions, but no data of its own."""
    student = tmp_path / "student"
    save_random_model(student, preset("tiny_video"))
    mdm_like = ["--model", student, "--json"]
    assert mdm(*mdm_like, "--data", "motion:3").exit_code == 0
    (student / "captions.txt").write_bytes((moving / "captions.txt").read_bytes())
    assert mdm(*mdm_like, "--data", "motion:3").exit_code == 0
    assert "which motion:8 holds out" in refusal(*mdm_like, "--data", "motion:8")


def test_a_level_of_clips_is_scored_as_clips_or_as_pictures(moving: Path, pictures: Path) -> None:
    asked = ["--model", moving, "--json", "--stop-at"]
    report = json.loads(mdm(*asked, "1x8", "--data", "motion").stdout)
    assert list(report["rows"]["trained"]) == ["object"]
    assert report["settings"]["stop_at"] == 8
    report = json.loads(mdm(*asked, "4x8", "--data", "motion").stdout)
    assert list(report["rows"]["trained"]) == ["motion", "pair", "track"]
    report = json.loads(mdm(*asked, "1x8", "--data", pictures).stdout)
    assert (report["side"], report["compared_at"]) == (8, 8)
    assert "give 4x8 or 1x8" in refusal(*asked, "8", "--data", "motion")
    for level in (["--stop-at", "4x8"], []):
        message = refusal("--model", moving, *level, "--data", pictures)
        assert "and its pictures with --stop-at 1x8" in message
