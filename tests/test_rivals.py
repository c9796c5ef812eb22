"""Defects that were found in other toolkits of this kind, and the test here that each would fail.

The tests of the first list are elsewhere and marked as its guards; those below are of this file.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from guards import CollectedTests, can_fail, swift_guards
from mil_programs import half, package

from benchmarks.harness import Measured, Row
from mdm_apple.cli import COMMANDS, group
from mdm_apple.cli.convert_command import command as convert_command
from mdm_apple.cli.verify_command import command as verify_command
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress import palette_jobs
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.package_file.weights import weights_of
from mdm_apple.conversion.source.model import load_source
from mdm_apple.conversion.source.trajectory import PROMPTS
from mdm_apple.conversion.verify.verify import VerifyOptions
from mdm_apple.training.boot import BootConfig
from mdm_apple.training.distill import DistillJob
from mdm_apple.training.settings import TrainConfig
from mdm_apple.training.start import Job

pytest_plugins = ["bundles"]

ROOT = Path(__file__).parents[1]
SWIFT = ROOT / "swift_package" / "Tests" / "MatryoshkaDiffusionTests"

# whose fields commands fill from the options of the same names
FIELDS = (TrainConfig, BootConfig, Job, DistillJob)

DEFECTS = (
    "PSNR of bytes wraps around at 256, so that a floor of 20 dB cannot fail",
    "chunked attention drops the tokens of a last chunk that is not full",
    "pieces of a split model are left out of compression",
    "a failed parity check still exits with 0",
    "layers whose channels do not divide are skipped in silence",
    "weights move to another layer on the way",
    "a second picture by the same runtime fails or differs",
    "cancelling leaves the network in memory",
    "an error while a preview is made ends the app",
    "a preview loads a decoder",
    "a slip of precedence in the size of a level",
    "a page that says 404 is taken for a model",
    "weights of another model are matched",
    "groups too small for the exact search get a worse palette",
    "statistics of a large image overflow in fp16",
    "squares of activations beyond 255 overflow in fp16",
    "an error while replacing a model deletes the others",
)
CHECKS_IN_SWIFT = ("#expect(", "#require(")


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> CollectedTests:
    """The whole suite; a run of some files cannot say which guards there are."""
    found = request.config.pluginmanager.get_plugin("collected")
    assert isinstance(found, CollectedTests)
    if {*(ROOT / "tests").glob("test_*.py")} - {item.path for item in found.items}:
        pytest.skip("only some files were collected")
    return found


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_guard_of_the_defect_runs_and_can_fail(defect: str, collected: CollectedTests) -> None:
    here, in_swift = collected.guards().get(defect, []), swift_guards(SWIFT).get(defect, [])
    assert here or in_swift
    assert all(can_fail(item.obj) for item in here if isinstance(item, pytest.Function))
    assert all(any(check in body for check in CHECKS_IN_SWIFT) for body in in_swift)


def test_every_guard_is_of_a_defect_of_the_list(collected: CollectedTests) -> None:
    assert {*collected.guards(), *swift_guards(SWIFT)} == {*DEFECTS}


def hollow() -> None:
    statistics.fmean([1.0])
    assert True


def test_a_guard_that_checks_nothing_is_seen() -> None:
    assert not can_fail(hollow)
    assert can_fail(test_a_guard_that_checks_nothing_is_seen)


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for folder in ("mdm_apple", "conversion", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                yield file, node


def offences(source: list[tuple[Path, ast.AST]]) -> list[str]:
    """Text that is evaluated, versions compared as text, a tuple by a forgotten comma."""
    found: list[str] = []
    for file, node in source:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("eval", "exec"):
                found.append(f"{file}:{node.lineno} evaluates text")
        elif isinstance(node, ast.Compare) and any(
            isinstance(o, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for o in node.ops
        ):
            texts = [c for c in ast.walk(node) if isinstance(c, ast.Constant)]
            if "version" in ast.unparse(node) and any(isinstance(c.value, str) for c in texts):
                found.append(f"{file}:{node.lineno} compares a version as text")
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            if len(node.value.elts) != 1:
                continue
            written = ast.get_source_segment(file.read_text(encoding="utf-8"), node.value)
            if not (written or "").startswith("("):
                found.append(f"{file}:{node.lineno} makes a tuple by its last comma")
    return found


def test_no_text_is_evaluated_nor_versions_compared_as_text_nor_tuples_made_by_accident() -> None:
    assert offences(list(nodes())) == []


def test_that_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text('size = 3,\nif ct_version < "8.0":\n    shape = eval("(1, 2)")\n')
    tree = [(file, node) for node in ast.walk(ast.parse(file.read_text()))]
    assert len(offences(tree)) == 3


def test_times_are_summed_up_right_and_none_are_no_crash_but_a_refusal() -> None:
    """Elsewhere constant times vary, and a median of none ends the program."""
    assert Row("a", Measured([3.0] * 4), "b", Measured([2.0] * 4)).ratio == 1.5
    assert Row("a", Measured([1.0, 9.0, 3.0]), "b", Measured([3.0])).ratio == 1.0
    with pytest.raises(statistics.StatisticsError):
        _ = Row("a", Measured([]), "b", Measured([])).ratio


def test_as_many_prompts_are_compared_as_are_promised() -> None:
    """Elsewhere a comment says four, the list holds eight."""
    (prompts,) = (p for p in verify_command.params if p.name == "prompts")
    assert isinstance(prompts.type, click.IntRange)
    assert len({*PROMPTS}) == VerifyOptions().prompts == prompts.default == prompts.type.max == 8


def fields_that_are_never_read(source: str) -> set[str]:
    """Fields of the request classes in a module of the command line that nothing there reads."""
    tree = ast.parse(source)
    requests = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    fields = {
        line.target.id
        for request in requests
        if request.name.endswith("Request")
        for line in request.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return fields - {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def test_every_option_of_a_command_is_read_and_no_other() -> None:
    """Elsewhere --model-size is declared and args.model_version read.

    An option that its request lacks, or the reverse, ends the first call of the command.
    """
    by_fields = {f.name for kind in FIELDS for f in dataclasses.fields(kind)}
    for file in (ROOT / "mdm_apple" / "cli").glob("*_command.py"):
        unread = fields_that_are_never_read(file.read_text(encoding="utf-8"))
        allowed = by_fields if file.stem in ("train_command", "distill_command") else set()
        assert unread <= allowed, file.name
    slip = "class R(Request): pass\nclass ARequest:\n    model_size: int\nr.model_version"
    assert fields_that_are_never_read(slip) == {"model_size"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_declares_exactly_the_fields_of_its_request(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    below = command.commands.values() if isinstance(command, click.Group) else [command]
    for one in below:
        assert one.callback is not None
        request = inspect.getclosurevars(one.callback).nonlocals["request"]
        declared = {p.name for p in one.params if p.expose_value} - {"as_json", "quiet", "help"}
        # `given` is no option: it names those that the caller gave
        assert declared == {f.name for f in dataclasses.fields(request)} - {"given"}


def test_unknown_system_is_refused_and_not_replaced_by_another(tmp_path: Path) -> None:
    arguments = ["--preset", "tiny", "--target", "macOS99", "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(convert_command, arguments)
    assert done.exit_code == 2
    assert "'macOS99' is not one of" in done.output


def test_layers_that_begin_alike_get_palettes_of_their_own(tmp_path: Path) -> None:
    """A match by shape and first number would give both the palette of one."""
    first, second = half(64, 64, 3, 3), 3 * half(64, 64, 3, 3)
    second[0, 0, 0, 0] = first[0, 0, 0, 0]
    made = package(
        tmp_path,
        lambda b, x: b.conv(
            x=b.conv(x=x, weight=first, pad_type="same"), weight=second, pad_type="same"
        ),
    )
    weights = weights_of(made.function())
    jobs = [
        palette_jobs.Job(made.weight_path(w.stored.file), w.stored.offset, w.shape, 0, None, 4)
        for w in weights
    ]
    one, other = palette_jobs.run_jobs(jobs, processes=1)
    assert np.abs(other.values).max() > 2 * np.abs(one.values).max()


def test_text_encoder_that_is_not_wanted_is_not_loaded(model_folder: Path) -> None:
    assert load_source(model_folder, "no").encoder is None
    assert load_source(model_folder, "auto").encoder is not None


def test_nothing_is_fetched_by_importing() -> None:
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import mdm_apple.conversion.convert, mdm_apple.conversion.compress.palettize\n"
        "import mdm_apple.conversion.verify.verify, benchmarks.palettes\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_metadata_of_a_package_survives_opening(tiny_bundle: Bundle) -> None:
    for info in tiny_bundle.manifest.packages:
        metadata = Package.open(tiny_bundle.file(info.path)).metadata
        assert metadata["mdm.package"] == info.name
