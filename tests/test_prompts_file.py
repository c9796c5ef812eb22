"""Prompts from a file: lines or JSON, ranges of seeds, and a command that goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mdm_apple.cli import group
from mdm_apple.cli.picture_files import PictureFiles
from mdm_apple.cli.prompts_file import PromptLine, SeedRange, every_picture, read_prompts
from mdm_apple.errors import MdmError
from mdm_apple.sampling.picture import Picture
from mdm_apple.sampling.pictures import read_recipe
from mdm_apple.sampling.settings import SampleSettings

ROOT = Path(__file__).parents[1]
FAST = ["--steps", "2", "--backend", "torch", "--quiet", "--json"]


def sample(*words: str | Path) -> Result:
    return CliRunner().invoke(group, ["sample", *FAST, *(str(word) for word in words)])


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '\ufeffred heart\n\n{"prompt": "cat", "seed": 9, "steps": 3, "sampler": "ddpm"}\n'
        '{"prompt": "green apple", "guidance": 2, "negative": "red"}\n',
        encoding="utf-8",
    )
    return path


def test_lines_have_settings_of_their_own(lines: Path) -> None:
    read = read_prompts(lines)
    assert [line.prompt for line in read] == ["red heart", "cat", "green apple"]
    prompts, each = every_picture(read, (1, 2), "dog", SampleSettings(steps=2, guidance=3.0))
    assert [(p.text, p.seed, p.negative) for p in prompts] == [
        ("red heart", 1, "dog"),
        ("red heart", 2, "dog"),
        ("cat", 9, "dog"),
        ("green apple", 1, "red"),
        ("green apple", 2, "red"),
    ]
    assert [(s.steps, s.guidance, s.sampler) for s in each] == [
        *[(2, 3.0, None)] * 2,
        (3, 3.0, "ddpm"),
        *[(2, 2.0, None)] * 2,
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompt"),
        (" \n\n", "holds no prompt"),
        ('heart\n{"prompt": "x", "steeps": 3}', "line 2: unknown key 'steeps'"),
        ('{"prompt": "x", "prompt": "y"}', "appears twice"),
        ('{"seed": 3}', "key 'prompt' is missing"),
        ('{"prompt": "x", "seed": "3"}', "seed: expected"),
        ('{"prompt": "x", "guidance": NaN}', "not a number that JSON allows"),
        ('{"prompt": "x"', "not valid JSON"),
        ("\udcff", "cannot be read as UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MdmError, match=says):
        read_prompts(path)


def test_a_range_of_seeds_has_an_end() -> None:
    kind = SeedRange()
    assert kind.convert("1-16", None, None) == range(1, 17)
    assert kind.convert("7", None, None) == range(7, 8)
    assert len(kind.convert("0-4095", None, None)) == 4096
    for text, says in (
        ("0-4096", "4,097 seeds, expected up to 4,096"),
        ("5-1", "a range that rises"),
        ("1-4294967296", "up to 4294967295"),
        ("a-b", "no range of seeds"),
    ):
        with pytest.raises(Exception, match=says):
            kind.convert(text, None, None)
    many = [PromptLine("x")] * 17
    with pytest.raises(MdmError, match=r"more than 65,536 pictures"):
        every_picture(many, tuple(range(4096)), "", SampleSettings())
    with pytest.raises(MdmError, match="seeds: say which"):
        every_picture(many, (), "", SampleSettings())


def test_a_command_that_is_stopped_at_any_picture_makes_the_rest(
    lines: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--prompts", lines, "--seeds", "1", "--model", model_folder, "--batch-size", "1"]
    assert sample(*asked, "--out", tmp_path / "whole").exit_code == 0
    names = [path.name for path in sorted((tmp_path / "whole").iterdir())]
    assert names == [
        "0000_red-heart_1.png",
        "0001_cat_9.png",
        "0002_green-apple_1.png",
    ]
    assert read_recipe(tmp_path / "whole" / names[1]).steps == 3
    write = PictureFiles.write
    for stop in range(3):
        out, made = tmp_path / f"out{stop}", list[int]()

        def write_until(files: PictureFiles, k: int, picture: Picture) -> None:
            if len(made) == stop:  # noqa: B023
                raise KeyboardInterrupt
            write(files, k, picture)
            made.append(k)  # noqa: B023

        monkeypatch.setattr(PictureFiles, "write", write_until)
        assert sample(*asked, "--out", out).exit_code
        before = {path: path.stat().st_mtime_ns for path in out.iterdir()} if out.exists() else {}
        assert len(before) == stop
        monkeypatch.setattr(PictureFiles, "write", write)
        result = sample(*asked, "--out", out)
        assert json.loads(result.stdout)["files"] == [str(out / name) for name in names]
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # none twice
        for name in names:
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.bundle
def test_a_killed_command_goes_on(lines: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--prompts", lines, "--seeds", "1-12", "--model", model_folder, "--batch-size", "1"]
    words = [
        sys.executable,
        "-m",
        "mdm_apple",
        "sample",
        *FAST,
        *map(str, asked),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    ends = time.monotonic() + 60
    while len(list(out.glob("*.png")) if out.exists() else []) < 3 and time.monotonic() < ends:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 3 <= len(before) < 25
    assert sample(*asked, "--out", out).exit_code == 0
    after = sorted(out.iterdir())
    assert len(after) == 25
    assert [path for path, time in before.items() if path.stat().st_mtime_ns != time] == []
    with Image.open(after[-1]) as image:
        assert np.asarray(image).shape == (16, 16, 3)


def test_a_file_of_prompts_needs_a_folder_that_holds_nothing_else(
    lines: Path, model_folder: Path, tmp_path: Path
) -> None:
    asked = ["--prompts", lines, "--seeds", "1-2", "--model", model_folder]
    assert "say which folder" in str(sample(*asked).exception)
    assert "needs a folder" in str(sample(*asked, "--out", tmp_path / "a.png").exception)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    assert "add --overwrite" in str(sample(*asked, "--out", tmp_path / "mine").exception)
    out = tmp_path / "out"
    assert sample(*asked, "--out", out).exit_code == 0
    other = sample(*asked[:2], "--seeds", "1-2", *asked[4:], "--guidance", "5", "--out", out)
    assert "made in another way" in str(other.exception)
