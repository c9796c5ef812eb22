"""What the README, the guides and the examples show is true: every command parses, code runs."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mdm_apple.bundled_models import EMOJI
from mdm_apple.cli import group
from mdm_apple.training.launch import RECOVERS

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "tests" / "old" / "model.bundle"
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/*.md")})
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4,}.*\n)+")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced or indented block; an indented one has no language."""
    text = page.read_text(encoding="utf-8")
    yield from FENCED.findall(text)
    yield from (("", block) for block in INDENTED.findall(FENCED.sub("", text)))


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `mdm ...` in the blocks, without its comment."""
    for language, text in blocks(page):
        if language in ("", "sh", "bash", "shell"):
            joined = text.replace("\\\n", " ").replace("&& ", "\n")
            for line in re.findall(r"^ *mdm (.*)$", joined, re.MULTILINE):
                words = shlex.split(line, comments=True)
                if "..." not in words:
                    yield words


SHOWN = [
    pytest.param(words, id=f"{page.stem}:{' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page)
]


def parse(words: list[str]) -> None:
    """Click's own parser, without running the command. Raises click.UsageError."""
    name, *rest = words
    command = group.get_command(click.Context(group), name)
    assert command is not None, name
    if isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    command.make_context(name, rest)


@pytest.mark.parametrize(
    ("page", "count"),
    [("README.md", 14), ("docs/benchmarks.md", 8), ("docs/mlx.md", 6), ("docs/swift.md", 2)],
)
def test_the_commands_of_a_page_are_found(page: str, count: int) -> None:
    """Of fenced and of indented blocks, with several commands on a line."""
    assert len(list(commands(ROOT / page))) >= count


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_that_a_page_shows_parses(words: list[str]) -> None:
    parse(words)


def launched(file: Path) -> list[str]:
    """Arguments of the `mdm` that a file of docs/launch starts, a shell script or a manifest."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".sh":
        found = re.search(r"--no-python +mdm ([^&]*)&$", text.replace("\\\n", " "), re.MULTILINE)
        return shlex.split(found[1]) if found else []
    return ["train", *re.findall(r"^ +- (--\S+)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", ["slurm.sh", "trainjob.yaml"])
def test_a_launch_file_starts_a_command_that_parses_and_may_be_repeated(name: str) -> None:
    file = ROOT / "docs" / "launch" / name
    words = launched(file)
    parse(words)
    joined = " ".join(words).replace("=", " ")
    assert "--resume auto" in joined
    assert "--backend torch" in joined
    assert RECOVERS in file.read_text(encoding="utf-8")
    assert RECOVERS in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_a_command_that_does_not_exist_does_not_parse() -> None:
    with pytest.raises(click.UsageError, match="--steeps"):
        parse(["sample", "red heart", "--steeps", "3"])


class WorkBeginsError(Exception):
    """A command has refused nothing, and calls the function that does its work."""


# The function of mdm_apple.api with which a command begins its work; options that name a model.
BEGINNING = {name: name for name in ("convert", "distill", "palettize", "train")}
BEGINNING["verify"] = "open_bundle"
NAMING = ("--model", "--teacher", "--init", "--grow", "--fp16", "--against")


def before_work(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Run a command up to its work, in a folder with the models, bundles and files it names."""

    def begin(*_: object, **__: object) -> None:
        raise WorkBeginsError

    monkeypatch.chdir(folder)
    monkeypatch.setattr(f"mdm_apple.api.{BEGINNING[words[0]]}", begin)
    for option, name in itertools.pairwise(words):
        if option in (*NAMING, words[0]) and not name.startswith(("--", "box:")):
            Path(name).parent.mkdir(exist_ok=True)
            target = BUNDLE if name.endswith(".bundle") else EMOJI
            Path(name).unlink(missing_ok=True)
            Path(name).symlink_to(target)
        elif option in ("--recipe", "--features"):
            Path(name).touch()
    return CliRunner().invoke(group, [*words, "--quiet"])


@pytest.mark.parametrize(
    "words",
    # a resumed run would have to exist
    [
        shown
        for shown in SHOWN
        if shown.values[0][0] in BEGINNING and "--resume" not in shown.values[0]
    ],
)
def test_a_command_that_a_page_shows_is_not_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = before_work(words, tmp_path, monkeypatch)
    assert isinstance(result.exception, WorkBeginsError), result.exception or result.output


def test_a_command_that_lacks_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["palettize", "emoji.bundle", "--variant", "balanced", "--out", "small.bundle"]
    assert "add --model NAME" in str(before_work(words, tmp_path, monkeypatch).exception)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not (page.parent / target).exists()] == []


CODE = [text for language, text in blocks(ROOT / "README.md") if language == "python"]


@pytest.mark.bundle
@pytest.mark.parametrize("number", range(len(CODE)))
def test_code_of_the_readme_runs(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE[number]],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_three_lines_and_a_nest() -> None:
    assert len(CODE) == 2
    assert 'mdm.load("box:student")' in CODE[0]
    assert "nested_loss(" in CODE[1]


# --- the tutorial -----------------------------------------------------------------------------

# What a test can afford. Each of these options stands in the tutorial; the test changes its value,
# and adds only --quiet, and to verify what makes it easy. Mixed bits of the emoji preset take
# minutes to measure.
AFFORDABLE = {
    "--preset": {"train": "tiny"},
    "--steps": {"train": "2", "distill": "1", "sample": "1", "evaluate": "1"},
    "--batch-size": {"train": "6"},
    "--sample-every": {"train": "0"},
}


def affordable(words: list[str]) -> list[str]:
    """A command with fewer steps; a student keeps its own number of them."""
    out = list(words)
    for option, limits in AFFORDABLE.items():
        if option in out and words[0] in limits:
            out[out.index(option) + 1] = limits[words[0]]
    return out


@pytest.mark.bundle
def test_the_tutorial_goes_from_photos_to_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.RandomState(0)
    for number in range(20):
        pixels = random.randint(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02d}.jpg")
        caption = "rex asleep" if number == 1 else f"rex on beach {number}"
        (photos / f"{number:02d}.txt").write_text(caption, encoding="utf-8")
    done = []
    for words in commands(ROOT / "docs" / "tutorial.md"):
        if words[0] in ("bench", "doctor"):  # need a Mac
            continue
        # after two training steps no figure means anything, so nothing is demanded of it
        easy = ["--floor", "0", "--prompts", "1"] if words[0] == "verify" else []
        result = CliRunner().invoke(group, [*affordable(words), *easy, "--quiet"])
        assert result.exit_code == 0, (words, result.exception, result.output)
        done.append(words[0])
    assert done == [
        *("data", "train", "sample", "sample", "evaluate", "distill", "sample"),
        *("convert", "palettize", "verify", "sample"),
    ]
    assert (tmp_path / "bundle.png").is_file()
