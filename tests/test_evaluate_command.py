"""`mdm evaluate`: numbers as JSON and as a file, pairs as a picture, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mdm_apple.api import evaluate
from mdm_apple.cli import group
from mdm_apple.errors import MdmError

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
