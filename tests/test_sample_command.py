"""`mdm sample`: files, grids, previews, and pictures that can be made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from small import random_state, save_random_model

from mdm_apple.cli import group
from mdm_apple.cli.picture_files import PictureFiles
from mdm_apple.config.presets import preset
from mdm_apple.errors import MdmError
from mdm_apple.sampling.picture import Picture
from mdm_apple.sampling.pictures import read_recipe

FAST = ["--steps", "3", "--backend", "torch", "--quiet"]


def mdm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, [str(a) for a in arguments])


def made(*arguments: str | Path) -> list[Path]:
    result = mdm("sample", *FAST, "--json", *arguments)
    assert result.exit_code == 0, result.exception or result.output
    return [Path(name) for name in json.loads(result.stdout)["files"]]


def refusal(*arguments: str | Path) -> str:
    result = mdm("sample", *FAST, *arguments)
    assert isinstance(result.exception, MdmError), result.exception
    return str(result.exception)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_one_prompt_and_seed_make_one_file(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "heart.png"
    assert made("--model", model_folder, "--prompt", "red heart", "--seed", "7", "--out", out) == [
        out
    ]
    assert pixels(out).shape == (16, 16, 3)
    recipe = read_recipe(out)
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.backend) == (
        "red heart",
        7,
        3,
        "torch",
    )
    hashes = json.loads((model_folder / "hashes.json").read_text())
    assert recipe.model == hashes["model.safetensors"]["sha256"]


def test_prompts_and_seeds_make_a_folder_with_a_grid(model_folder: Path, tmp_path: Path) -> None:
    options = ["--prompt", "red heart", "--prompt", "cat", "--seed", "1", "--seed", "2"]
    files = made("--model", model_folder, *options, "--out", tmp_path / "all")
    assert [f.name for f in files] == [
        "0000_red-heart_1.png",
        "0001_red-heart_2.png",
        "0002_cat_1.png",
        "0003_cat_2.png",
        "grid.png",
    ]
    assert pixels(files[-1]).shape == (16, 4 * 16 + 3 * 2, 3)
    (alone,) = made(
        "--model", model_folder, *options[2:4], "--seed", "2", "--out", tmp_path / "one.png"
    )
    assert np.abs(pixels(alone) - pixels(files[3])).max() <= 1


def test_previews_are_a_strip_of_levels_over_steps(model_folder: Path, tmp_path: Path) -> None:
    options = ["--prompt", "red heart", "--previews", "--preview-every", "2"]
    files = made("--model", model_folder, *options, "--out", tmp_path / "heart.png")
    assert [f.name for f in files] == ["heart.png", "heart_steps.png"]
    columns, rows = 3, 2  # steps 0 and 2 and the result; both levels
    assert pixels(files[1]).shape == (rows * 18 - 2, columns * 18 - 2, 3)
    np.testing.assert_array_equal(pixels(files[1])[:16, -16:], pixels(files[0]))


def test_prompts_embedded_beforehand_need_no_encoder(model_folder: Path, tmp_path: Path) -> None:
    """Also for an encoder that was trained with the model, which config.json cannot name."""
    cache = tmp_path / "prompts.features"
    result = mdm("embed", "--model", model_folder, "--prompt", "red heart", "--out", cache)
    assert result.exit_code == 0, result.exception
    asked = ["--prompt", "red heart", "--seed", "0", "--model", model_folder, "--out"]
    (own,) = made(*asked, tmp_path / "own.png")
    (cached,) = made(*asked, tmp_path / "cached.png", "--features", cache)
    assert np.abs(pixels(own) - pixels(cached)).max() <= 8  # features are kept in bf16
    other = save_random_model(tmp_path / "other", preset("tiny"), encoder_seed=5)
    asked = ["--prompt", "red heart", "--model", other, "--out", tmp_path / "other.png"]
    assert "was made with encoder_sha256" in refusal(*asked, "--features", cache)


@pytest.mark.parametrize(
    "how",
    [
        ["--sampler", "ddpm", "--negative", "blue", "--guidance", "3"],
        ["--sampler", "ddim", "--eta", "0.5", "--threshold", "dynamic", "--spacing", "log_snr"],
        ["--sampler", "dpmpp", "--stop-at", "8"],
        ["--precision", "bf16"],
    ],
)
def test_like_makes_the_same_picture_again(
    model_folder: Path, tmp_path: Path, how: list[str]
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    prompt = ["--prompt", 'quoted "heart" ❤️', "--seed", "4294967295"]
    made("--model", model_folder, *prompt, *how, "--out", first)
    made("--model", model_folder, "--like", first, "--out", again)
    np.testing.assert_array_equal(pixels(again), pixels(first))
    assert read_recipe(again) == read_recipe(first)
    made("--model", model_folder, *prompt, "--out", tmp_path / "plain.png")
    assert not np.array_equal(pixels(tmp_path / "plain.png"), pixels(first))


def test_an_option_beside_like_varies_the_picture(model_folder: Path, tmp_path: Path) -> None:
    first, other = tmp_path / "first.png", tmp_path / "other.png"
    made("--model", model_folder, "--prompt", "cat", "--guidance", "3", "--out", first)
    made("--model", model_folder, "--like", first, "--steps", "9", "--out", other)
    recipe = read_recipe(other)
    assert (recipe.steps, recipe.guidance, recipe.prompt) == (9, 3.0, "cat")
    assert not np.array_equal(pixels(first), pixels(other))


def test_like_with_other_weights_says_so(model_folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.png"
    made("--model", model_folder, "--prompt", "cat", "--steps", "1", "--out", first)
    weights = random_state(preset("tiny").model, seed=1)
    other = save_random_model(tmp_path / "other", preset("tiny"), weights)
    result = CliRunner().invoke(
        group,
        ["sample", "--model", str(other), "--like", str(first), "--out", str(tmp_path / "b.png")],
    )
    assert result.exit_code == 0
    assert "was made with other weights" in result.stderr


@pytest.mark.parametrize(
    ("name", "prompts", "said"),
    [("two.png", 2, "2 pictures need a folder"), ("one.jpg", 1, "written as .png")],
)
def test_a_file_name_that_cannot_be_honoured_is_refused(
    model_folder: Path, tmp_path: Path, name: str, prompts: int, said: str
) -> None:
    asked = [x for k in range(prompts) for x in ("--prompt", f"cat {k}")]
    message = refusal("--model", model_folder, *asked, "--out", tmp_path / name)
    assert said in message
    assert not (tmp_path / name).exists()


def test_like_survives_a_copy_of_the_model(model_folder: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    made("--model", model_folder, "--prompt", "cat", "--out", first)
    shutil.copytree(model_folder, tmp_path / "copy")
    made("--model", tmp_path / "copy", "--like", first, "--out", again)
    assert first.read_bytes() == again.read_bytes()


def test_like_with_a_prompt_is_refused(model_folder: Path, tmp_path: Path) -> None:
    made("--model", model_folder, "--prompt", "cat", "--out", tmp_path / "a.png")
    message = refusal(
        "--model",
        model_folder,
        "--like",
        tmp_path / "a.png",
        "--prompt",
        "x",
        "--out",
        tmp_path / "b",
    )
    assert "leave out PROMPT and --seed" in message


def test_like_refuses_pictures_without_a_recipe(model_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for name, expected in (
        ("plain.png", "carries no recipe"),
        ("broken.png", "cannot read it"),
        ("none.png", "no such file"),
    ):
        out = ["--out", tmp_path / "out.png"]
        assert expected in refusal("--model", model_folder, "--like", tmp_path / name, *out)
    assert not (tmp_path / "out.png").exists()


def test_nothing_is_overwritten_unless_asked(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "heart.png"
    out.write_bytes(b"mine")
    asked = ["--model", model_folder, "--prompt", "cat", "--out", out]
    assert "add --overwrite" in refusal(*asked)
    assert out.read_bytes() == b"mine"
    made(*asked, "--overwrite")
    assert pixels(out).shape == (16, 16, 3)


def test_pictures_are_there_as_soon_as_they_are_made_and_the_same_command_goes_on(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [word for seed in range(5) for word in ("--seed", str(seed))]
    asked = ["--model", model_folder, "--prompt", "cat", *seeds, "--batch-size", "2", "--previews"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    made(*asked, "--out", whole)

    finished = PictureFiles.write

    def interrupted(files: PictureFiles, k: int, picture: Picture) -> None:
        if k == 3:
            raise KeyboardInterrupt
        finished(files, k, picture)

    monkeypatch.setattr(PictureFiles, "write", interrupted)
    stopped = mdm("sample", *FAST, *asked, "--out", parts)
    assert stopped.exit_code == 1
    kept = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(kept) == 6  # three pictures and their strips
    next_one = sorted(path.name for path in whole.iterdir())[7]
    (parts / f".{next_one}.7.partial").write_bytes(b"half")  # kill -9 leaves such files
    monkeypatch.setattr(PictureFiles, "write", finished)
    made(*asked, "--out", parts)
    assert {n: (parts / n).stat().st_mtime_ns for n in kept} == kept  # not made again
    assert {p.name: p.read_bytes() for p in parts.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }
    assert "add --overwrite" in refusal(*asked, "--out", parts)  # it is complete now


def test_a_command_without_a_seed_goes_on_with_the_one_that_it_drew(
    model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ["--model", model_folder, "red heart", "cat", "--out", out]
    files = made(*asked)
    whole = {path.name: path.read_bytes() for path in files}
    for path in (files[1], out / "grid.png"):
        path.unlink()
    (out / ".DS_Store").write_bytes(b"\0")  # Finder was there meanwhile
    assert "add --overwrite" in refusal("--model", model_folder, "dog", "cat", "--out", out)
    assert {path.name: path.read_bytes() for path in made(*asked)} == whole


def test_a_folder_that_finder_has_looked_at_counts_as_empty(
    model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_bytes(b"\0")
    assert len(made("--model", model_folder, "cat", "--seed", "1", "--out", out)) == 2


def test_another_commands_pictures_are_not_gone_on_with(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--model", model_folder, "--prompt", "cat", "--seed", "1", "--seed", "2", "--out", out]
    made(*asked)
    (out / "grid.png").unlink()
    assert "was made in another way" in refusal(*asked, "--guidance", "3")
    (out / "mine.txt").write_text("mine")
    assert "add --overwrite" in refusal(*asked)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "prompt: say what to draw"),
        (["--prompt", "cat", "--stop-at", "12"], "sides 16, 8, got 12"),
        (["--prompt", "cat", "--steps", "5000"], "steps: expected 1 to 1000"),
        (["--prompt", "cat", "--guidance", "1e9"], "guidance: expected -100 to 100"),
        (["--prompt", "cat", "--backend", "reference"], "is a model folder"),
    ],
)
def test_impossible_requests_are_refused_and_leave_nothing(
    model_folder: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    asked = ["--model", model_folder, *arguments, "--out", tmp_path / "out"]
    assert expected in refusal(*asked)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for model in (tmp_path / "none", tmp_path):
        message = refusal("--model", model, "--prompt", "cat", "--out", tmp_path / "out")
        assert str(model) in message
