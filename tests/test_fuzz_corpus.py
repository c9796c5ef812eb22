"""Every kept input of the fuzzers is read or refused as their contract says, without atheris."""

from __future__ import annotations

import importlib
import pickle
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from fuzz.contract import GROWTH, SECONDS, BrokenContractError, Read, hold, peak_memory, warmed

from mdm_apple.errors import MdmError

FUZZ = Path(__file__).parent / "fuzz"
NAMES = sorted(path.stem for path in (FUZZ / "readers").glob("*.py"))
OPENS_PACKAGES = ("bundle_manifest", "package", "package_manifest", "package_weights")


def costed(name: str, *values: object) -> ParameterSet:
    marks = [pytest.mark.bundle] if name in OPENS_PACKAGES else []
    return pytest.param(*values, marks=marks, id="-".join(map(str, values)))


SEEDS = [
    costed(name, name, path.name)
    for name in NAMES
    for path in sorted((FUZZ / "corpus" / name).iterdir())
]


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_a_kept_input_keeps_to_the_contract(name: str, seed: str, tmp_path: Path) -> None:
    hold(reader(name), tmp_path, (FUZZ / "corpus" / name / seed).read_bytes())


@cache
def reader(name: str) -> Read:
    read = importlib.import_module(f"fuzz.readers.{name}").read
    seed = min((FUZZ / "corpus" / name).iterdir())
    with tempfile.TemporaryDirectory() as folder:
        return warmed(read, Path(folder), seed.read_bytes())


@pytest.mark.parametrize("name", [costed(name, name) for name in NAMES])
def test_a_fuzzer_starts_from_an_input_that_its_reader_accepts(name: str, tmp_path: Path) -> None:
    places = (FUZZ / "corpus" / name).iterdir()
    refusals = [
        hold(reader(name), fresh(tmp_path / path.name), path.read_bytes()) for path in places
    ]
    assert None in refusals, refusals


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_inputs_are_kept_for_every_fuzzer_and_no_other() -> None:
    assert sorted(path.name for path in (FUZZ / "corpus").iterdir() if path.is_dir()) == NAMES


def ends_the_line(folder: Path, data: bytes) -> None:
    raise MdmError("one line\nand another.")


def loops(folder: Path, data: bytes) -> None:
    ends = time.process_time() + SECONDS + 0.1
    while time.process_time() < ends:
        pass


def takes_memory(folder: Path, data: bytes) -> None:
    b"x" * (peak_memory() + GROWTH)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda folder, data: data[99], "index out of range"),
        (ends_the_line, "something else than a sentence"),
        (lambda folder, data: (folder.parent / "out.txt").write_bytes(data), "did what no reader"),
        (lambda folder, data: Path("/etc/passwd").read_bytes(), "did what no reader may"),
        (lambda folder, data: folder.with_name("made").mkdir(), "did what no reader may"),
        (lambda folder, data: pickle.loads(pickle.dumps(Path())), "did what no reader may"),
        pytest.param(takes_memory, "MiB of memory", marks=pytest.mark.slow),
        pytest.param(loops, "of processor time", marks=pytest.mark.slow),
    ],
)
def test_what_breaks_the_contract_is_found(read: Read, reason: str, tmp_path: Path) -> None:
    with pytest.raises((BrokenContractError, IndexError), match=reason):
        hold(read, tmp_path, b"")
