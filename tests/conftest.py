"""What several test files need.

One thread per process: results repeat, and tests share a machine.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when a framework is imported, so before that
# fused kernels cost half a minute of compiler time on a CPU; tests about them undo this
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import numpy as np
import pytest
from backends import BACKENDS, Backend
from changed import changed_files, reaching
from costs import CostOfTests
from guards import CollectedTests
from PIL import Image
from small import CAPTIONS, save_random_model
from swift_tools import Dump, build

from benchmarks.blas import lend_blas
from mdm_apple.config.presets import preset

lend_blas()  # before a test module imports mlx


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--changed-first", action="store_true", help="tests that reach a changed file first"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CostOfTests(), "costs")
    config.pluginmanager.register(CollectedTests(), "collected")


@pytest.hookimpl(trylast=True)  # of what -m has left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files stay whole. Those with costly tests come first, so that one process starts on them
    while the other runs the cheap ones, and then helps."""
    if config.getoption("--changed-first"):
        first = reaching(changed_files().files)
    else:
        first = {item.path for item in items if not item.get_closest_marker("unit")}
    items.sort(key=lambda item: item.path not in first)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    remark = changed_files().remark() if config.getoption("--changed-first") else None
    if remark is not None:
        terminalreporter.write_line(remark)


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with random weights; tests read it and leave it as it is."""
    return save_random_model(tmp_path_factory.mktemp("models") / "tiny", preset("tiny"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sixteen captioned pictures, 8 px."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    for number, caption in enumerate(CAPTIONS):
        pixels = random.randint(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def dump() -> Dump:
    """The Swift library's answers; see swift_tools."""
    return Dump(build("mdm-dump"))
