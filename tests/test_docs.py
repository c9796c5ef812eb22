"""What the README, the guides and the examples show is true: every command parses, code runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mdm_apple.cli import group

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/*.md")])


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `mdm ...` in the fenced blocks, without its comment."""
    for language, text in blocks(page):
        if language in ("", "sh", "bash", "shell"):
            joined = text.replace("\\\n", " ")
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


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) > 40


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_that_a_page_shows_parses(words: list[str]) -> None:
    parse(words)


def test_a_command_that_does_not_exist_does_not_parse() -> None:
    with pytest.raises(click.UsageError, match="--steeps"):
        parse(["sample", "red heart", "--steeps", "3"])


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

# What a test can afford; each option stands in the tutorial, and nothing else is changed. Mixed
# bits of the emoji preset take minutes to measure.
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
        *("train", "sample", "sample", "evaluate", "distill", "sample"),
        *("convert", "palettize", "verify", "sample"),
    ]
    assert (tmp_path / "bundle.png").is_file()
