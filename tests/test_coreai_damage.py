"""Damaged Core AI packages in a bundle whose hashes fit, so that Apple's code meets the damage.

Apple's code aborts on most of them. That may end its own process, which no command must share.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bundle_cache import converted
from command_server import CommandServer, Ended, command_server
from coreai_wheels import needs_coreai

from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, finish_bundle
from mdm_apple.conversion.source.model import ModelSource

pytest_plugins = ["bundles"]
pytestmark = needs_coreai


def noise(count: int) -> bytes:
    return np.random.RandomState(0).bytes(count)


PROGRAMS: dict[str, Callable[[bytes], bytes]] = {
    "an empty program": lambda data: b"",
    "half a program": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "more bytes at the end": lambda data: data + noise(4096),
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: noise(len(data)),
    "noise in the head": lambda data: noise(256) + data[256:],
    "noise behind the head": lambda data: data[:1000] + noise(2000) + data[3000:],
    "turned bits": lambda data: data[:40] + bytes(255 - b for b in data[40:400]) + data[400:],
    "the first half twice": lambda data: data[: len(data) // 2] * 2,
}
METADATA: dict[str, Callable[[bytes], bytes]] = {
    "metadata that is no JSON": lambda data: b"{",
    "metadata of another type": lambda data: b"[1]",
}
KINDS = [*PROGRAMS, *METADATA]
QUICK = ("half a program", "metadata that is no JSON")
COMMANDS = ("verify", "sample", "palettize", "inspect")


@pytest.fixture(scope="module")
def sound(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("coreai") / "sound.bundle"
    return converted(tiny_source, out, ConvertOptions("monolith", format="coreai"))


@pytest.fixture(scope="module")
def server() -> Iterator[CommandServer]:
    """Its commands may write core files."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with command_server() as started:
            resource.setrlimit(resource.RLIMIT_CORE, before)
            yield started
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def damaged(sound: Bundle, folder: Path, package: str, kind: str | None) -> Bundle:
    """A copy whose manifest and hashes fit what was done to a package; None: nothing."""
    place = folder / "damaged.bundle"
    shutil.copytree(sound.path, place)
    program = place / package / "main.mlirb"
    if kind in PROGRAMS:
        program.write_bytes(PROGRAMS[kind](program.read_bytes()))
        program.with_name("main.hash").write_bytes(hashlib.sha256(program.read_bytes()).digest())
    elif kind is not None:
        metadata = program.with_name("metadata.json")
        metadata.write_bytes(METADATA[kind](metadata.read_bytes()))
    (place / MANIFEST).unlink()
    finish_bundle(place, sound.manifest)
    return Bundle.open(place)  # no hash stops the commands


def run(server: CommandServer, command: str, bundle: Bundle, folder: Path) -> Ended:
    arguments: dict[str, list[str | Path]] = {
        "verify": ["verify", bundle.path, "--prompts", "1", "--quiet"],
        "sample": ["sample", "a cat", "--model", bundle.path, "--backend", "coreai"],
        "palettize": ["palettize", bundle.path, "--bits", "6", "--out", folder / "made.bundle"],
        "inspect": ["inspect", bundle.path],
    }
    more = {"sample": ["--steps", "1", "--out", folder / "cat.png", "--quiet"]}
    more["palettize"] = ["--quiet"]
    return server.ask([*arguments[command], *more.get(command, [])], folder)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).digest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def check_refusal(server: CommandServer, bundle: Bundle, command: str, package: str) -> None:
    folder = bundle.path.parent
    before = files(folder)
    ended = run(server, command, bundle, folder)
    assert ended.code == 1, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"mdm: {package}: Apple's runtime "), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.endswith(".\n")
    # Neither an output, nor a part of one, nor a core file; and nothing for temporary files.
    assert files(folder) == before
    assert {place.name for place in folder.iterdir()} == {bundle.path.name, "scratch"}
    assert list((folder / "scratch").iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_damage_is_one_sentence(
    sound: Bundle, server: CommandServer, tmp_path: Path, kind: str, command: str
) -> None:
    package = sound.manifest.packages[0].path
    check_refusal(server, damaged(sound, tmp_path, package, kind), command, package)


@pytest.mark.parametrize("command", ["verify", "sample", "palettize"])
def test_damage_that_is_met_late_leaves_nothing_half_done(
    sound: Bundle, server: CommandServer, tmp_path: Path, command: str
) -> None:
    """The last package: others have run, or lie compressed on the disk, by then."""
    package = sound.manifest.packages[-1].path
    check_refusal(server, damaged(sound, tmp_path, package, "half a program"), command, package)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_without_damage_the_same_commands_succeed(
    sound: Bundle, server: CommandServer, tmp_path: Path, command: str
) -> None:
    bundle = damaged(sound, tmp_path, sound.manifest.packages[0].path, None)
    ended = run(server, command, bundle, tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
