"""`mdm-generate` and the bundles that its tests give it; a server of this checkout runs them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bundle_cache import converted
from small import longest_model, save_random_model, trainable_model
from students import save_random_student
from swift_tools import build

from mdm_apple.bundled_models import EMOJI
from mdm_apple.config.presets import preset
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.source.model import load_source

MDM = "import sys; from mdm_apple.cli import main; sys.argv[0] = 'mdm'; main()"


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("swift") / "emoji.bundle"
    return converted(load_source(EMOJI), out, ConvertOptions(layout="nested"))


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A function per side of 8 and 4 pixels."""
    root = tmp_path_factory.mktemp("swift")
    folder = save_random_model(root / "small", trainable_model())
    return converted(
        load_source(folder), root / "functions.bundle", ConvertOptions("multifunction")
    )


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Four frames of 8 pixels, and their key frame."""
    root = tmp_path_factory.mktemp("swift")
    folder = save_random_model(root / "clips", preset("tiny_video"))
    return converted(load_source(folder), root / "clips.bundle", ConvertOptions("nested"))


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Distilled in name, of random weights; takes 1, 2 or 4 steps and weights 1 to 4."""
    root = tmp_path_factory.mktemp("swift")
    folder = save_random_student(root, flow_map=4)
    return converted(load_source(folder), root / "student.bundle", ConvertOptions("nested"))


@pytest.fixture(scope="session")
def longest(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Pads to the longest caption; its empty prompt is a space."""
    root = tmp_path_factory.mktemp("swift")
    folder = save_random_model(root / "longest", longest_model())
    return converted(load_source(folder), root / "longest.bundle", ConvertOptions("nested"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mdm` of this checkout."""
    program = tmp_path_factory.mktemp("server") / "mdm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{MDM}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


@pytest.fixture(scope="session")
def program(server: Path) -> list[str]:
    """mdm-generate with a server of this checkout."""
    return [str(build("mdm-generate")), "--server", str(server)]
