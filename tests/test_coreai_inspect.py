"""`mdm inspect` on Core AI: bundles, and anybody's .aimodel, which may be damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_cache import converted, palettized
from click.testing import CliRunner, Result
from coreai_wheels import needs_coreai
from small_assets import Weighted, program_of
from torch import Tensor, nn

from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.coreai.census import Census, Found
from mdm_apple.conversion.coreai.compressed import store_palettes
from mdm_apple.conversion.coreai.program import editing, functions, name_constants, operations
from mdm_apple.conversion.coreai.weights import weights_of
from mdm_apple.conversion.coreai.wheels import quiet
from mdm_apple.conversion.inspect.asset import RULES, errors_of, inspect_asset
from mdm_apple.conversion.inspect.inspect import inspect_bundle
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.errors import MdmError

pytest_plugins = ["bundles", "temporary_folder"]
pytestmark = [needs_coreai, pytest.mark.bundle]

PART = "down_16.aimodel"


@pytest.fixture(scope="module")
def small(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "nested.bundle"
    return converted(tiny_source, out, ConvertOptions(format="coreai"))


@pytest.fixture
def foreign(small: Bundle, tmp_path: Path) -> Path:
    """A .aimodel as if from elsewhere, which a test may change."""
    return shutil.copytree(small.file(PART), tmp_path / PART)


def inspected(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["inspect", *arguments])


def refused(path: Path, temporary: Path) -> str:
    """The one sentence of the refusal; nothing is left behind."""
    result = inspected(str(path))
    assert isinstance(result.exception, MdmError), result.output
    assert result.output == ""
    sentence = str(result.exception)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert list(temporary.iterdir()) == []
    return sentence


# --- our bundles ------------------------------------------------------------------------------


def test_packages_of_a_bundle_have_the_numbers_of_core_ml(small: Bundle, nested: Bundle) -> None:
    theirs = {p.name: p for p in inspect_bundle(nested).packages}
    found = inspect_bundle(small)
    for package in found.packages:
        other = theirs[package.name]
        assert package.parameters == pytest.approx(other.parameters, rel=0.05)
        assert package.plain_weights == other.plain_weights
        assert package.compressed_weights == 0
        assert (package.flops, package.traffic, package.cuts) == (None, None, None)
        assert package.stored is not None
        assert 0 < sum(package.stored.values()) <= package.bytes
    for package in (p for p in found.packages if p.for_neural_engine):
        assert list(package.computed or ()) == ["fp16"]
        assert package.errors == 0


def test_compressed_weights_are_counted(small: Bundle, tmp_path: Path) -> None:
    for setting, stored, rule in (
        (Setting(3), "uint3", "palette-3-bits"),
        (Setting(4, "linear"), "int4", "linear-int4"),
    ):
        made, report = palettized(small, tmp_path / f"{setting.name}.bundle", setting)
        for package in inspect_bundle(made).packages:
            count = sum(w.reason is None for w in report.weights if w.package == package.name)
            assert package.compressed_weights == package.findings[rule] == count
            assert package.stored is not None
            assert stored in package.stored


def test_bundles_are_shown_alone_and_beside_core_ml(small: Bundle, nested: Bundle) -> None:
    alone = inspected(str(small.path))
    assert alone.exit_code == 0, alone.output
    assert "GFLOP, traffic and times: not counted for Core AI" in alone.stdout
    beside = inspected(str(small.path), "--beside", str(nested.path))
    rows = [line.split() for line in beside.stdout.splitlines()]
    assert ["GFLOP", "not", "counted", "0.02"] in rows
    asked = json.loads(inspected(str(small.path), "--json").stdout)
    assert asked["packages"][0]["estimated_ms"] is None


# --- anybody's .aimodel -----------------------------------------------------------------------


def test_a_package_by_path_shows_what_is_in_it(foreign: Path, small: Bundle) -> None:
    contents = inspect_asset(foreign)
    entry = small.package("down_16")
    assert contents.census.functions == ("main",)
    assert list(contents.census.inputs) == [f.name for f in entry.inputs]
    assert list(contents.census.outputs) == [f.name for f in entry.outputs]
    assert contents.census.outputs[entry.outputs[0].name] == "fp16[1, 32, 8, 8]"
    assert sum(contents.files.values()) == entry.bytes
    shown = inspected(str(foreign))
    assert shown.exit_code == 0
    assert "conv2d 9" in shown.stdout


class Careless(nn.Module):
    """Breaks every rule about operations."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        positive = (mask > 2).float()  # a comparison becomes numbers
        hidden = x + torch.tensor([0.0, -torch.inf])
        return hidden * positive, hidden.argmax(-1)


def test_lint_names_what_a_careless_program_does(tmp_path: Path) -> None:
    path = tmp_path / "careless.aimodel"
    inputs = torch.zeros(2, 1, 2, 1, 2, 2), torch.zeros(2, 1, 2, 1, 2, 2, dtype=torch.int32)
    with quiet("coreai_torch"):
        from coreai_torch import TorchConverter, get_decomp_table

        batch = torch.export.Dim("batch", min=2, max=8)
        program = torch.export.export(
            Careless(), inputs, dynamic_shapes=({0: batch}, {0: batch}), strict=False
        ).run_decompositions(get_decomp_table())
        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
        converter.add_exported_program(program, input_names=["x", "mask"], output_names=["a", "b"])
        converter.to_coreai().save_asset(path)
    found = inspect_asset(path)
    assert {rule.name for rule in found.rules} == {rule.name for rule in RULES} - {
        "linear-int4",
        "palette-3-bits",
        "short-last-axis",
    }
    assert found.census.inputs["x"].startswith("fp32[?, 1, 2")


def test_the_first_finding_of_every_rule_comes_first() -> None:
    found = [Found(rule, f"{rule} {k}", "") for rule in ("fp32", "rank") for k in range(3)]
    empty: dict[str, Any] = {"functions": (), "inputs": {}, "outputs": {}, "operations": {}}
    counts = {"computed": {}, "stored": {}, "parameters": 0, "plain_weights": 0}
    census = Census(
        **empty,
        **counts,
        compressed_weights=0,
        findings={"fp32": 30, "rank": 3},
        first=tuple(found),
    )
    count, shown = errors_of(census)
    assert count == 33
    names = [finding.operation for finding in shown]
    assert names == ["fp32 0", "rank 0", "fp32 1", "rank 1", "fp32 2", "rank 2"]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 3]


def flip(data: bytes) -> bytes:
    return data[:40] + bytes(255 - b for b in data[40:400]) + data[400:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": cut,
    "empty": lambda _: b"",
    "zeroed": lambda data: bytes(len(data)),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_sentence(foreign: Path, temporary: Path, damage: str) -> None:
    program = foreign / "main.mlirb"
    program.write_bytes(DAMAGES[damage](program.read_bytes()))
    assert "main.hash is not the SHA-256 of main.mlirb" in refused(foreign, temporary)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_with_a_matching_hash_ends_only_the_child(
    foreign: Path, temporary: Path, damage: str
) -> None:
    program = foreign / "main.mlirb"
    program.write_bytes(DAMAGES[damage](program.read_bytes()))
    (foreign / "main.hash").write_bytes(hashlib.sha256(program.read_bytes()).digest())
    assert PART in refused(foreign, temporary)


def test_the_command_prints_the_sentence_and_fails(foreign: Path, temporary: Path) -> None:
    (foreign / "main.mlirb").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "mdm_apple", "inspect", str(foreign)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []


def test_links_and_other_files_are_refused(foreign: Path, temporary: Path) -> None:
    (foreign / "extra.bin").write_bytes(b"1")
    assert "holds 'extra.bin'" in refused(foreign, temporary)
    (foreign / "extra.bin").unlink()
    (foreign / ".DS_Store").write_bytes(b"1")  # the system's own
    program = foreign / "main.mlirb"
    program.rename(foreign.parent / "elsewhere")
    program.symlink_to(foreign.parent / "elsewhere")
    assert "main.mlirb is a link" in refused(foreign, temporary)
    program.unlink()
    assert "main.mlirb is missing" in refused(foreign, temporary)
    os.mkfifo(program)
    assert "main.mlirb is a link or no file" in refused(foreign, temporary)
    program.unlink()
    (foreign.parent / "elsewhere").rename(program)
    assert inspected(str(foreign)).exit_code == 0


def test_sizes_are_checked_before_a_file_is_read(foreign: Path, temporary: Path) -> None:
    with (foreign / "metadata.json").open("r+b") as file:
        file.truncate(1 << 40)  # holds no blocks
    assert "metadata.json has 1099511627776 bytes" in refused(foreign, temporary)
    with (foreign / "main.hash").open("r+b") as file:
        file.truncate(31)
    (foreign / "metadata.json").write_bytes(b"{}")
    assert "main.hash is not the SHA-256" in refused(foreign, temporary)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, temporary: Path) -> None:
    path = tmp_path / "one.aimodel"
    path.write_bytes(b"ML")
    assert "expected the folder of an .aimodel" in refused(path, temporary)


def test_without_apples_packages_there_is_one_sentence(
    foreign: Path, small: Bundle, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdm_apple.errors.has_coreai", lambda: False)
    for path in (foreign, small.path):
        assert "pip install 'mdm-apple[coreai]'" in refused(path, temporary)


# --- several functions, and orders that are not constants -----------------------------------------

MATRIX = 64 * 32


def weighted(rows: int) -> tuple[nn.Module, list[Tensor]]:
    return Weighted(), [torch.zeros(rows, 32).half(), torch.zeros(2, dtype=torch.int32)]


@pytest.fixture
def sharing() -> Any:
    """Two functions of one matrix, which take and give different sizes under the same names."""
    parts = {"one": weighted(1), "many": weighted(40)}
    program = program_of(parts, ("x", "order"), ("y", "more"))
    name_constants(program, {})
    return program


@pytest.mark.parametrize("compressed", [False, True])
def test_what_functions_share_is_counted_once(
    sharing: Any, tmp_path: Path, compressed: bool
) -> None:
    if compressed:
        with editing(sharing):
            (weight,) = weights_of(sharing)
            palettes = np.zeros((1, 16), np.float16)
            store_palettes(weight, np.zeros(MATRIX // 2, np.uint8), 4, palettes, 0)
    sharing.save_asset(tmp_path / "sharing.aimodel")
    found = inspect_asset(tmp_path / "sharing.aimodel").census
    assert sorted(found.functions) == ["many", "one"]
    assert found.parameters == MATRIX
    assert (found.plain_weights, found.compressed_weights) == ((0, 1) if compressed else (1, 0))
    stored = {"uint4": MATRIX // 2, "fp16": 32} if compressed else {"fp16": 2 * MATRIX}
    assert found.stored == stored


def test_weights_that_differ_are_counted_each(tmp_path: Path) -> None:
    parts = {"small": weighted(1), "large": (Weighted(96), weighted(1)[1])}
    program = program_of(parts, ("x", "order"), ("y", "more"))
    name_constants(program, {})
    program.save_asset(tmp_path / "two.aimodel")
    found = inspect_asset(tmp_path / "two.aimodel").census
    assert (found.parameters, found.plain_weights) == (MATRIX + 96 * 32, 2)


def test_features_of_one_name_are_shown_for_each_function(sharing: Any, tmp_path: Path) -> None:
    sharing.save_asset(tmp_path / "sharing.aimodel")
    found = inspect_asset(tmp_path / "sharing.aimodel").census
    assert found.inputs["one/x"] == "fp16[1, 32]"
    assert found.inputs["many/x"] == "fp16[40, 32]"
    assert found.outputs["many/y"] == "fp16[40, 64]"
    assert len(found.inputs) == len(found.outputs) == 4
    assert "input many/x: fp16[40, 32]" in inspected(str(tmp_path / "sharing.aimodel")).stdout


def test_a_transpose_by_an_argument_leaves_the_axes_open(tmp_path: Path) -> None:
    """The order comes from an input, through a cast in the file and then directly."""
    program = program_of({"main": weighted(1)}, ("x", "order"), ("y", "more"))
    (known,) = weights_of(program)
    assert (known.out_axis, known.in_axis) == (0, 1)
    with editing(program):
        from coreai._compiler.ir import InsertionPoint, IntegerType, Operation, RankedTensorType

        (graph,) = functions(program)
        (transpose,) = (o for o in operations(graph) if o.operation.name == "coreai.transpose")
        argument = graph.regions[0].blocks[0].arguments[1]
        kind = RankedTensorType.get([2], IntegerType.get_unsigned(32))
        with InsertionPoint(transpose):
            made = Operation.create("coreai.cast", [kind], [argument])
        transpose.operation.operands[1] = made.result
        (weight,) = weights_of(program)
        assert (weight.out_axis, weight.in_axis) == (None, None)
    program.save_asset(tmp_path / "turned.aimodel")
    found = inspect_asset(tmp_path / "turned.aimodel").census
    assert (found.parameters, found.plain_weights) == (MATRIX, 1)
    with editing(program):
        transpose.operation.operands[1] = argument
        (weight,) = weights_of(program)
        assert (weight.out_axis, weight.in_axis) == (None, None)
