"""What `mdm sample` and its neighbours do where nothing is said: CHANGELOG's table, row by row."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from small import save_random_model

from mdm_apple.bundled_models import EMOJI, EMOJI_STUDENT
from mdm_apple.cli import group
from mdm_apple.config.presets import preset
from mdm_apple.open_model import Opening
from mdm_apple.sampling.pictures import Recipe, read_recipe
from mdm_apple.sampling.settings import SamplingDefaults, write_sampling
from mdm_apple.storage.model_folder import weights_sha256

CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `(mdm .*?) \| (.*) \| (.*) \| (.*)\|$", CHANGELOG, re.MULTILINE)
HEART = ["sample", "red heart", "--backend", "torch"]


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    """Each model is loaded once, however many commands use it."""
    load, loaded = Opening.load, dict[Path, Any]()

    def remembered(opening: Opening, *probe: Any) -> Any:
        path = opening.named.path
        if path not in loaded:
            loaded[path] = load(opening, *probe)
        return loaded[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Opening, "load", remembered)
        yield


@pytest.fixture(scope="module")
def suited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with settings of its own beside it."""
    folder = save_random_model(tmp_path_factory.mktemp("suited") / "model", preset("tiny"))
    write_sampling(folder, SamplingDefaults("dpmpp", 2, 1.5))
    return folder


def mdm(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, [str(a) for a in arguments])
    assert result.exit_code == 0, result.exception or result.output
    return result


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, because files without a name go there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_prompt_in_bytes_of_utf_8_is_read_whatever_the_locale() -> None:
    """As an argument arrives where the locale is ASCII."""
    argument = "a café".encode().decode("ascii", "surrogateescape")
    mdm("sample", argument, "--seed", "7", "--out", "cafe.png", "--backend", "torch", "--quiet")
    recipe = read_recipe(Path("cafe.png"))
    assert recipe is not None
    assert recipe.prompt == "a café"


def test_what_the_model_does_not_see_of_a_prompt_is_said() -> None:
    long = " ".join(["red heart"] * 12)
    said = mdm("sample", long, "--out", "long.png", "--backend", "torch").stderr
    assert re.search(r"the model reads 16 tokens, so it does not see '.*heart'", said)
    said = mdm("sample", "red \u732b heart", "--out", "cat.png", "--backend", "torch").stderr
    assert "the model knows no token for '\u732b'" in said
    assert "does not see" not in said


def test_a_prompt_that_is_not_text_is_refused_before_anything_is_drawn() -> None:
    refused = CliRunner().invoke(group, ["sample", "caf\udce9", "--out", "cafe.png"])
    assert refused.exit_code == 1
    assert "prompt: 'caf\\udce9' is not UTF-8 text" in str(refused.exception)
    assert not Path("cafe.png").exists()


@pytest.mark.parametrize("name", ["prompt", "negative"])
def test_a_prompt_that_is_far_too_long_is_refused_as_what_it_is(name: str) -> None:
    long = "red " * 20_000
    given = [long] if name == "prompt" else ["red heart", "--negative", long]
    refused = CliRunner().invoke(group, ["sample", *given, "--model", "box:emoji"])
    assert str(refused.exception) == f"{name}: expected at most 65,536 characters, got 80,000."


def recipe_of(*arguments: str | Path) -> Recipe:
    mdm(*HEART, "--seed", "7", "--out", "heart.png", "--quiet", *arguments)
    return read_recipe(Path("heart.png"))


def how(recipe: Recipe) -> tuple[str, int | None, float]:
    return recipe.sampler, recipe.steps, recipe.guidance


def parsed(*words: str) -> dict[str, Any]:
    """The options of a command with their defaults, without running it."""
    command = group.get_command(click.Context(group), words[0])
    assert command is not None
    return command.make_context(words[0], list(words[1:])).params


# --- the rows of the table ------------------------------------------------------------------------


def test_without_a_model_the_student_of_the_box_draws_in_one_step_at_guidance_2() -> None:
    recipe = recipe_of()
    assert recipe.model == weights_sha256(EMOJI_STUDENT)
    assert how(recipe) == ("student", 1, 2.0)


def test_a_student_that_is_named_takes_its_own_settings() -> None:
    assert how(recipe_of("--model", EMOJI_STUDENT)) == ("student", 1, 2.0)


def test_the_file_beside_a_model_says_how_it_is_sampled(suited: Path) -> None:
    assert how(recipe_of("--model", suited)) == ("dpmpp", 2, 1.5)
    assert how(recipe_of("--model", suited, "--steps", "1", "--overwrite")) == ("dpmpp", 1, 1.5)


def test_the_file_beside_a_model_says_how_it_is_evaluated(suited: Path, pictures: Path) -> None:
    asked = ["--data", pictures, "--count", "4", "--backend", "torch", "--json", "--quiet"]
    report = json.loads(mdm("evaluate", "--model", suited, *asked).stdout)
    sampler = report["settings"]["sampler"]
    assert (sampler["kind"], sampler["num_steps"], sampler["guidance_scale"]) == ("dpmpp", 2, 1.5)


def test_a_model_without_the_file_is_evaluated_with_50_steps_of_ddim(
    model_folder: Path, pictures: Path
) -> None:
    asked = ["--data", pictures, "--count", "4", "--backend", "torch", "--json", "--quiet"]
    report = json.loads(mdm("evaluate", "--model", model_folder, *asked).stdout)
    sampler = report["settings"]["sampler"]
    assert (sampler["kind"], sampler["num_steps"], sampler["guidance_scale"]) == ("ddim", 50, 1.0)


def test_without_a_seed_a_random_one_is_printed_and_stored() -> None:
    seeds = []
    for name in ("a.png", "b.png"):
        said = re.findall(r"^seed (\d+)$", mdm(*HEART, "--out", name).stderr, re.MULTILINE)
        assert said == [str(read_recipe(Path(name)).seed)]
        seeds += said
    assert seeds[0] != seeds[1]


def test_a_seed_that_was_given_is_not_printed() -> None:
    assert "seed 7" not in mdm(*HEART, "--seed", "7", "--out", "a.png").stderr.splitlines()


def test_without_a_name_the_file_has_the_prompt_and_the_seed_and_the_next_free_number(
    here: Path,
) -> None:
    for _ in range(3):
        mdm(*HEART, "--seed", "7", "--quiet")
    names = {path.name for path in here.iterdir()}
    assert names == {"red-heart_7.png", "red-heart_7_2.png", "red-heart_7_3.png"}


def test_evaluate_takes_the_student_of_the_box() -> None:
    assert parsed("evaluate", "--data", "twemoji")["model"] == "box:student"


def test_distill_decides_by_itself_whether_to_recompute() -> None:
    given = ["--teacher", "box:emoji", "--steps", "1", "--out", "student"]
    assert parsed("distill", *given)["checkpointing"] == "auto"


def test_each_row_with_an_old_default_is_followed_by_flags_that_bring_it_back() -> None:
    needed = {
        "sample": ["red heart"],
        "evaluate": ["--data", "twemoji"],
        "distill": ["--teacher", "box:emoji", "--steps", "1", "--out", "student"],
    }
    flags = [(row[0].split()[1].strip("`,"), row[3].strip().strip("`")) for row in TABLE]
    assert len(flags) == 8
    for command, old in flags:
        parsed(command, *needed[command], *shlex.split(old))


# --- remarks and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [["--negative", "blue"], ["--previews"], ["--sampler", "dpmpp"], ["--threshold", "clip"]],
    ids=" ".join,
)
def test_what_a_student_cannot_do_is_done_by_the_emoji_model_which_says_why(
    option: list[str],
) -> None:
    said = mdm(*HEART, *option, "--steps", "1", "--stop-at", "16", "--out", "heart.png").stderr
    why = "draws in one step" if option == ["--previews"] else "takes no "
    assert f"model: box:emoji, because box:student {why}" in said
    assert option == ["--previews"] or f"{option[0]}." in said
    assert read_recipe(Path("heart.png")).model == weights_sha256(EMOJI)


def test_a_named_model_needs_no_reason() -> None:
    given = ["--model", "box:emoji", "--sampler", "dpmpp", "--steps", "1", "--stop-at", "16"]
    assert "because a student" not in mdm(*HEART, *given, "--out", "heart.png").stderr


def test_a_prompt_that_was_not_learned_gets_the_nearest_caption() -> None:
    asked = ["--model", "box:emoji", "--steps", "1", "--stop-at", "16", "--backend", "torch"]
    said = mdm("sample", "red hart", *asked, "--out", "hart.png").stderr
    assert "'red hart' is not one of them; the nearest is 'red heart'." in said
    assert "the nearest is" not in mdm("sample", "Red  heart", *asked, "--out", "heart.png").stderr


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("train", "--warmup", "--warmup-steps"),
        ("sample", "--grid", "--spacing"),
        ("sample", "--dtype", "--precision"),
        ("evaluate", "--dtype", "--precision"),
        ("export", "--dtype", "--precision"),
    ],
)
def test_an_old_spelling_is_refused_with_the_new_one_named(
    command: str, old: str, new: str
) -> None:
    result = CliRunner().invoke(group, [command, old, "1"])
    assert result.exit_code == 2
    assert f"{old} is now called {new}." in result.output
