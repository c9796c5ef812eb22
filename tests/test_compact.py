"""Programs with each small constant once: smaller, and equal in what they compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.package_file.compact import compact_package
from mdm_apple.conversion.package_file.program_file import program_path, read_model

pytest_plugins = ["bundles"]


@pytest.fixture
def package(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    source = tiny_bundle.file(tiny_bundle.package("denoiser").path)
    return shutil.copytree(source, tmp_path / source.name)


def outputs(path: Path) -> dict[str, np.ndarray]:
    function = Package.open(path).function()
    draw = np.random.default_rng(3)
    given = {n: draw.normal(size=k.shape).astype(np.float32) for n, k in function.inputs.items()}
    return Package.open(path).load(None, precision="fp16")(given)


def program(path: Path) -> bytes:
    return (path / "Data" / program_path(path)).read_bytes()


def small_constants(path: Path) -> list[bytes]:
    """Type and value of each."""
    (function,) = read_model(path).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return [
        o.outputs[0].type.SerializeToString() + o.attributes["val"].SerializeToString()
        for o in block.operations
        if o.type == "const" and o.attributes["val"].WhichOneof("value") == "immediateValue"
    ]


def test_a_compact_program_computes_the_same_bits(package: Path) -> None:
    before, size = outputs(package), len(program(package))
    many = small_constants(package)
    compact_package(package)
    once = small_constants(package)
    assert sorted(once) == sorted(set(many))
    assert len(once) < len(many) / 4
    assert len(program(package)) < 0.75 * size
    after = outputs(package)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_compacting_again_changes_nothing(package: Path) -> None:
    compact_package(package)
    once = program(package)
    compact_package(package)
    assert program(package) == once


def test_another_constant_is_told_apart(package: Path) -> None:
    """The twin: the second of two values that differ in one bit is not taken for the first."""
    before = outputs(package)
    message = read_model(package)
    (function,) = message.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    epsilons = [
        o.attributes["val"].immediateValue.tensor.bytes
        for o in block.operations
        if o.type == "const" and "epsilon" in o.outputs[0].name
    ]
    assert len(epsilons) > 1
    epsilons[-1].values = np.float16(0.5).tobytes()
    (package / "Data" / program_path(package)).write_bytes(message.SerializeToString())
    other = outputs(package)
    compact_package(package)
    after = outputs(package)
    assert any((before[name] != after[name]).any() for name in before)
    assert all((other[name] == after[name]).all() for name in other)
