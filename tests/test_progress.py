"""Progress bars and refusals share a terminal: the bar is closed before the sentence."""

from __future__ import annotations

import ast
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from import_graph import ROOT, module_files
from PIL import Image
from small import trainable_model

from mdm_apple.config.strict_json import to_json

FILES = [*module_files().values()]
SETTINGS = ("--steps", "9", "--batch-size", "2", "--log-every", "1")


def loose_bars(source: str) -> list[int]:
    """Lines that make a bar outside of `with`, where an exception would leave it open."""
    tree = ast.parse(source)
    held = {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        for call in ast.walk(item.context_expr)
    }
    held |= {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "enter_context"
        for argument in node.args
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("tqdm", "trange")
        and id(node) not in held
    ]


def test_every_bar_is_closed_by_with() -> None:
    assert len(FILES) > 100
    found = {file: loose_bars(file.read_text(encoding="utf-8")) for file in FILES}
    assert {file: lines for file, lines in found.items() if lines} == {}
    assert sum("tqdm(" in file.read_text(encoding="utf-8") for file in FILES) >= 4


def test_a_bar_that_is_left_open_would_be_found() -> None:
    assert loose_bars("for x in tqdm(y):\n  pass\nbar = tqdm()\nwith bar: pass") == [1, 3]
    assert loose_bars("with a, tqdm() as bar:\n  stack.enter_context(tqdm())") == []


def on_a_terminal(*words: str | Path) -> str:
    """What a command prints on a terminal of 100 columns; it must refuse."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    printed = b""
    try:
        while some := os.read(ours, 1 << 16):
            printed += some
    except OSError:  # Linux reports the end of a terminal so
        pass
    os.close(ours)
    assert process.wait() == 1, printed
    return printed.decode()


def bar_is_above(printed: str) -> bool:
    """Whether the sentence stands alone on the last line, and a bar was drawn before it."""
    *before, sentence, end = printed.replace("\r\n", "\n").split("\n")
    return sentence.startswith("mdm: ") and end == "" and any("%|" in line for line in before)


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    """Pictures of which the last is damaged."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(8):
        for suffix in ("png", "txt"):
            name = f"{number:02d}.{suffix}"
            (folder / name).write_bytes((pictures / name).read_bytes())
    Image.new("RGB", (64, 64), "red").save(folder / "07.png")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:-30])
    return folder


@pytest.mark.bundle
def test_a_refusal_stands_below_the_bar_of_training(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(to_json(trainable_model()))
    printed = on_a_terminal(
        *("-m", "mdm_apple", "train", "--config", config, "--data", data, "--backend", "torch"),
        *(*SETTINGS, "--out", tmp_path / "run"),
    )
    assert "07.png: cannot be read" in printed
    assert bar_is_above(printed)


@pytest.mark.bundle
def test_a_refusal_stands_below_the_bar_of_a_check(data: Path) -> None:
    printed = on_a_terminal("-m", "mdm_apple", "data", "check", data)
    assert "1 of 8 pictures is bad" in printed
    assert bar_is_above(printed)


@pytest.mark.bundle
def test_an_open_bar_would_be_seen() -> None:
    program = """
import sys
from tqdm import tqdm
bar = tqdm(total=2)
bar.update()
sys.stderr.write("mdm: refused.\\n")
sys.exit(1)
"""
    assert not bar_is_above(on_a_terminal("-c", program))
