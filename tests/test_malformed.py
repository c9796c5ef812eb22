"""Malformed input: every command ends in one sentence and a non-zero exit, and changes nothing."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import malformed_folders
import malformed_inputs
import malformed_mlx
import pytest
import torch
from bundle_cache import converted
from command_server import Ended, command_server
from coreai_wheels import needs_coreai
from malformed import Case, Command, Good, Room, config_text, frozen_model
from small import random_state, save_random_model, trainable_model

from mdm_apple.config.presets import preset
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.source.model import load_source
from mdm_apple.data.open import open_dataset

CASES = [*malformed_inputs.CASES, *malformed_folders.CASES, *malformed_mlx.CASES]


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command in a folder, with a limit for the size of files; see forked_commands.py."""
    with command_server() as server:
        yield server.ask


@pytest.fixture(scope="module")
def good(run: Run, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Good:
    at = tmp_path_factory.mktemp("good")
    model = save_random_model(at / "model", trainable_model())
    config = at / "config.json"
    config.write_text(config_text({}))
    common = ("--data", pictures, "--steps", "2", "--batch-size", "4", "--quiet")
    succeed(run, at, "train", "--config", config, *common, "--out", at / "run")
    torch.save(
        {k: torch.from_numpy(v) for k, v in random_state(preset("tiny").model).items()},
        at / "tiny.pth",
    )
    photo = at / "photo.png"
    prompt = ("--prompt", "red heart", "--steps", "2", "--quiet")
    succeed(run, at, "sample", "--model", model, *prompt, "--out", photo)
    encoder = at / "encoder"
    frozen = frozen_model(at / "frozen", encoder)
    features = at / "features"
    place = ("--model", frozen, "--text-encoder", encoder, "--out", features)
    succeed(run, at, "embed", *place, "--prompt", "red heart", "--quiet")
    bundle = at / "bundle"
    converted(load_source(model), bundle, ConvertOptions("monolith"))
    return Good(
        model=model,
        run=at / "run",
        frozen=frozen,
        encoder=encoder,
        features=features,
        pictures=pictures,
        pth=at / "tiny.pth",
        photo=photo,
        bundle=bundle,
    )


def succeed(run: Run, at: Path, *command: str | Path) -> None:
    ended = run(command, at, None)
    assert ended.code == 0, ended


def contents(folder: Path) -> dict[str, str]:
    """Every path below, with what it holds."""
    return {
        str(path.relative_to(folder)): (
            f"link to {path.readlink()}"
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def is_one_sentence(text: str) -> bool:
    line = text.removesuffix("\n")
    return line.startswith("mdm: ") and line.isprintable() and line.endswith((".", "?"))


def test_there_are_sixty_cases_and_more_of_different_names() -> None:
    assert len(CASES) == len({case.name for case in CASES}) >= 60


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_malformed_input_ends_in_one_sentence_and_changes_nothing(
    case: Case, run: Run, good: Good, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    command = case.build(Room(tmp_path, good))
    before = contents(tmp_path)
    ended = run(command, tmp_path, case.file_bytes)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.code == case.code, ended
    assert case.says in ended.stderr
    assert is_one_sentence(ended.stderr), ended.stderr
    assert ended.stdout == ""
    assert contents(tmp_path) == before


def test_control_characters_in_captions_are_cleaned_away(
    run: Run, good: Good, tmp_path: Path
) -> None:
    room = Room(tmp_path, good)
    pictures = room.copy(good.pictures)
    (pictures / "03.txt").write_text("red\x00 \x1b[31mheart\u202e\r\n\x07")
    config = room.file("c.json", config_text({}))
    common = ("--data", pictures, "--out", room.out, "--steps", "1", "--batch-size", "4")
    succeed(run, tmp_path, "train", "--config", config, *common, "--quiet")
    assert open_dataset(str(pictures), 8).captions()[3] == "red [31mheart"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    allowed = sys.platform == "linux" and shutil.which("mount") is not None
    if not allowed or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs Linux and root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "import",
        "convert",
        pytest.param("convert to coreai", marks=needs_coreai),
        "palettize",
    ],
)
def test_a_full_disk_ends_in_one_sentence_and_stays_empty(
    name: str, run: Run, good: Good, tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    before = contents(tmp_path)
    commands: dict[str, Command] = {
        "train": (
            "--init",
            good.model,
            "--data",
            good.pictures,
            "--steps",
            "1",
            "--batch-size",
            "4",
        ),
        "import": (good.pth, "--preset", "tiny"),
        "convert": (good.model,),
        "convert to coreai": (good.model, "--format", "coreai"),
        "palettize": (good.bundle, "--bits", "8"),
    }
    ended = run(
        (name.split(maxsplit=1)[0], *commands[name], "--quiet", "--out", small_disk / "out"),
        tmp_path,
        None,
    )
    assert ended.code == 1, ended
    assert "the disk is full" in ended.stderr
    assert is_one_sentence(ended.stderr), ended.stderr
    assert contents(tmp_path) == before
