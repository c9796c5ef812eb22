"""`mdm distill`, and `mdm sample --sampler student`: files, recipes, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from small import CAPTIONS, save_random_model, trainable_model

from mdm_apple.cli import group
from mdm_apple.errors import MdmError
from mdm_apple.sampling.pictures import read_recipe
from mdm_apple.text.captions import CAPTIONS as CAPTIONS_FILE
from mdm_apple.text.captions import write_captions


def mdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, [*map(str, arguments), "--quiet"])


def refusal(*arguments: str | Path) -> str:
    result = mdm(*arguments)
    assert isinstance(result.exception, MdmError), (result.exception, result.output)
    return str(result.exception)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(tmp_path_factory.mktemp("teachers") / "teacher", trainable_model())
    write_captions(folder / CAPTIONS_FILE, CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("students") / "student"
    result = mdm(*small(teacher, out), "--flow-map", "2", "--guidance", "1", "4")
    assert result.exit_code == 0, result.exception
    return out


def small(teacher: Path, out: Path) -> list[str | Path]:
    return ["distill", "--teacher", teacher, "--out", out, "--steps", "2", "--batch-size", "2"]


def test_a_run_says_where_it_went_and_leaves_what_is_there_alone(
    teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    result = mdm(*small(teacher, out), "--json")
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout) == {"out": str(out), "steps": 2}
    assert "add --overwrite" in refusal(*small(teacher, out))
    assert mdm(*small(teacher, out), "--resume").exit_code == 0  # nothing left to do


def test_a_resumed_student_needs_no_setting_again(teacher: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "student"
    how = ["--flow-map", "2", "--guidance", "1", "3", "--seed", "5", "--resume", "auto"]
    assert mdm(*small(teacher, whole), *how, "--steps", "3").exit_code == 0
    assert mdm(*small(teacher, out), *how).exit_code == 0
    more = ["distill", "--teacher", teacher, "--out", out, "--steps", "3", "--resume"]
    result = mdm(*more)
    assert result.exit_code == 0, result.exception
    assert (out / "hashes.json").read_bytes() == (whole / "hashes.json").read_bytes()
    assert "flow_map: the run in" in refusal(*more, "--flow-map", "4")


def test_mlx_teaches_too(teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core")
    out = tmp_path / "student"
    result = mdm(*small(teacher, out), "--backend", "mlx", "--flow-map", "2")
    assert result.exit_code == 0, result.exception
    asked = ["--prompt", "red heart", "--sampler", "student", "--steps", "2", "--backend", "torch"]
    result = mdm("sample", "--model", out, *asked, "--out", tmp_path / "heart.png")
    assert result.exit_code == 0, result.exception


def test_a_dry_run_prints_the_settings_and_makes_nothing(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    result = mdm(*small(teacher, out), "--flow-map", "4", "--dry-run", "--json")
    assert result.exit_code == 0, result.exception
    settings = json.loads(result.stdout)
    assert settings["model"]["distilled"]["starts"] == [1000, 750, 500, 250]
    assert settings["boot"]["flow_map"] == 4
    assert settings["train"]["steps"] == 2
    assert not out.exists()


def test_runs_that_cannot_start_are_refused_and_make_nothing(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments, said in (
        ([*small(tmp_path / "none", out)], "no such model"),
        ([*small(student, out)], "is itself a student"),
        ([*small(teacher, out), "--guidance", "4", "1"], "guidance: expected"),
        ([*small(teacher, out), "--stride", "0"], "stride: expected"),
        ([*small(teacher, out), "--resume"], "no such model folder"),
        ([*small(teacher, out), "--captions", tmp_path / "no.txt"], "no.txt: no such file"),
        ([*small(teacher, out), "--accumulate", "3"], "accumulate: expected at most"),
    ):
        assert said in refusal(*arguments)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_makes_a_picture_that_remembers_how(
    student: Path, tmp_path: Path, steps: int
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    how = ["--sampler", "student", "--steps", str(steps), "--guidance", "3", "--seed", "5"]
    asked = ["sample", "--model", student, "--backend", "torch"]
    result = mdm(*asked, "--prompt", "red heart", *how, "--out", first)
    assert result.exit_code == 0, result.exception
    recipe = read_recipe(first)
    assert (recipe.sampler, recipe.steps, recipe.guidance) == ("student", steps, 3.0)
    assert mdm(*asked, "--like", first, "--out", again).exit_code == 0
    with Image.open(first) as one, Image.open(again) as two:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
        assert one.size == (8, 8)


def test_a_student_is_asked_what_suits_it_where_nothing_is_said(
    student: Path, tmp_path: Path
) -> None:
    asked = ["sample", "--model", student, "--backend", "torch", "--prompt", "red heart"]
    for given, expected in (([], (1, 2.5)), (["--steps", "2", "--guidance", "4"], (2, 4.0))):
        out = tmp_path / f"{len(given)}.png"
        result = mdm(*asked, "--sampler", "student", *given, "--out", out)
        assert result.exit_code == 0, result.exception
        recipe = read_recipe(out)
        assert (recipe.steps, recipe.guidance) == expected


def test_previews_and_an_inner_scale_work_in_a_few_steps(student: Path, tmp_path: Path) -> None:
    how = ["--sampler", "student", "--steps", "2", "--stop-at", "4", "--previews"]
    asked = ["sample", "--model", student, "--backend", "torch", "--prompt", "cat"]
    result = mdm(*asked, *how, "--preview-every", "1", "--out", tmp_path / "a.png")
    assert result.exit_code == 0, result.exception
    with Image.open(tmp_path / "a_steps.png") as strip:
        assert strip.size == (3 * 4 + 2 * 2, 4)  # two answers and the picture


def test_model_and_sampler_must_go_together(teacher: Path, student: Path, tmp_path: Path) -> None:
    out = ["--prompt", "cat", "--backend", "torch", "--out", tmp_path / "out.png"]
    of = {"teacher": ["sample", "--model", teacher], "student": ["sample", "--model", student]}
    one = ["--sampler", "student", "--steps", "1"]
    for arguments, said in (
        ([*of["teacher"], *one], "needs a distilled model, and this one is not"),
        ([*of["student"], "--sampler", "dpmpp"], "which dpmpp cannot run"),
        ([*of["student"], *one[:2], "--steps", "50"], "this student takes 1, 2, got 50"),
        ([*of["student"], "--sampler", "student", "--full-table"], "got the whole table"),
        ([*of["student"], *one, "--guidance", "9"], "learned 1 to 4, got 9"),
        ([*of["student"], *one, "--negative", "dog"], "takes no negative prompt"),
    ):
        assert said in refusal(*arguments, *out)
        assert list(tmp_path.iterdir()) == []


def test_a_student_is_evaluated_like_any_model_and_beside_its_teacher(
    teacher: Path, student: Path, model_folder: Path, pictures: Path
) -> None:
    asked = ["evaluate", "--model", student, "--data", pictures, "--backend", "torch"]
    how = ["--count", "4", "--sampler", "student", "--steps", "1", "--json"]
    result = mdm(*asked, *how, "--teacher", teacher, "--teacher-steps", "2")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert len(report["mean"]["teacher_distance"]) == 2
    assert "makes pictures of other sides" in refusal(*asked, *how, "--teacher", model_folder)
    assert report["settings"]["sampler"]["kind"] == "student"
    assert len(report["mean"]["text_only_mse"]) == 2
