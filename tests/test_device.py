"""The device bench, on the executor: what it measures, and what becomes of cells that fail.

Nothing here says anything about a device.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundle_cache import converted
from click.testing import CliRunner, Result
from coreai_wheels import needs_coreai

from mdm_apple.cli.bench_command import command
from mdm_apple.config.types import ComputeUnits
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.coreai.runtime import AppleRuntime
from mdm_apple.conversion.device.cells import ROUNDS, Cell, Demand, minutes, plan
from mdm_apple.conversion.device.child import record_of
from mdm_apple.conversion.device.conditions import Conditions, violations
from mdm_apple.conversion.device.engines import Engine, engine_for
from mdm_apple.conversion.device.measure import measure
from mdm_apple.conversion.device.placement import read_plan
from mdm_apple.conversion.device.results import append, read_results
from mdm_apple.conversion.device.run import run_plan
from mdm_apple.conversion.device.table import table
from mdm_apple.conversion.errors import ConversionError
from mdm_apple.conversion.footprint import peak_bytes
from mdm_apple.conversion.run.packages import executor
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.conversion.verify.verify import verify
from mdm_apple.errors import MdmError

pytest_plugins = ["bundles"]

ON_EXECUTOR = Demand(("executor",), (2,), package_repetitions=4, picture_repetitions=2, sustained=2)


def only(bundle: Bundle, kind: str, demand: Demand = ON_EXECUTOR) -> Cell:
    return next(cell for cell in plan([bundle], demand) if cell.kind == kind)


def test_a_plan_alternates_units_and_bundles_over_rounds(
    tiny_bundle: Bundle, tiny_palettized: Any
) -> None:
    bundles = [tiny_bundle, tiny_palettized[0]]
    cells = plan(bundles, Demand(("cpuAndNeuralEngine", "cpuOnly"), (2, 4)))
    first = [(c.round, c.kind, c.digest[:4], c.units) for c in cells[:4]]
    digests = [b.manifest.digest[:4] for b in bundles]
    units = ("cpuAndNeuralEngine", "cpuOnly")
    assert first == [(1, "packages", d, u) for d in digests for u in units]
    for kind, least in (("packages", 30), ("pictures", 10), ("sustained", 10)):
        for digest in digests:
            for unit in units:
                mine = [c for c in cells if (c.kind, c.digest[:4], c.units) == (kind, digest, unit)]
                assert sum(c.repetitions for c in mine) >= least
                assert len(mine) == (1 if kind == "sustained" else ROUNDS)
    assert len({c.id for c in cells}) == len(cells)
    assert all((minutes(c, bundles[0]) or 0) > 0 for c in cells)


def test_steps_that_a_bundle_does_not_take_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(MdmError, match=r"steps: .* got 100000"):
        plan([tiny_bundle], Demand(("executor",), (100_000,)))


def test_packages_are_timed_in_turn_with_loads_and_memory(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    cell = only(tiny_bundle, "packages")
    found = measure(cell, tiny_bundle, engine_for("executor", tiny_bundle, "fp16", tmp_path))
    by_name = {row["what"]: row for row in found["latencies"]}
    names = {package.name for package in tiny_bundle.manifest.packages}
    assert set(by_name) == {"prompt", "step", *(f"package {name}" for name in names)}
    assert all(len(row["seconds"]) == cell.repetitions for row in by_name.values())
    per_step = [p.name for p in tiny_bundle.manifest.packages if p.phase == "step"]
    for k, seconds in enumerate(by_name["step"]["seconds"]):  # a step is its packages, and more
        parts = sum(by_name[f"package {name}"]["seconds"][k] for name in per_step)
        assert 0 < parts <= seconds
    assert all(by_name[f"package {name}"]["flops"] > 0 for name in per_step)
    assert {load["package"] for load in found["loads"]} == names
    assert all(
        load["cold"] == (load["first_s"] > 1.5 * load["second_s"]) for load in found["loads"]
    )
    assert found["peak_bytes"] > 10e6
    assert (found["placement"], found["floor"]) == (None, None)


def test_a_unit_no_faster_than_the_cpu_is_a_fallback(tiny_bundle: Bundle) -> None:
    """A unit that is slower than the CPU, which no noise of the clock hides; then a slow CPU."""
    load = executor("fp16")

    def slow(path: Path, function: str | None, units: ComputeUnits) -> Any:
        program = load(path, function, units)

        def run(inputs: Any, watch: Any = None) -> Any:
            for _ in range(4):
                out = program(inputs, watch)
            return out

        return run

    cell = only(tiny_bundle, "packages")
    same = measure(cell, tiny_bundle, Engine("coreml", slow, load))["floor"]
    core = max(same, key=lambda row: row["seconds"])
    assert core["cpu_fallback"]
    rows = measure(cell, tiny_bundle, Engine("coreml", load, slow))["floor"]
    assert not next(r for r in rows if r["package"] == core["package"])["cpu_fallback"]


def test_pictures_have_seconds_and_the_quality_that_verify_finds(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    cell = only(tiny_bundle, "pictures")
    found = measure(cell, tiny_bundle, engine_for("executor", tiny_bundle, "fp16", tmp_path))
    ((steps, seconds),) = [(p["steps"], p["seconds"]) for p in found["pictures"]]
    assert (steps, len(seconds)) == (2, cell.repetitions)
    wanted = verify(tiny_bundle).as_json()
    assert found["quality"]["picture_psnr"] == wanted["picture_psnr"]
    assert found["quality"]["prediction_psnr"] == wanted["worst_psnr"]


def test_cells_run_in_processes_of_their_own_and_go_on_where_they_stopped(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out, bundles = tmp_path / "r.jsonl", {tiny_bundle.manifest.digest: tiny_bundle}
    cells = [only(tiny_bundle, "sustained")]
    said: list[str] = []
    (record,) = run_plan(cells, bundles, out, cache=tmp_path, limit_minutes=5, say=said.append)
    assert (record["status"], record["engine"]) == ("measured", "executor")
    assert len(record["sustained"]) == 2
    assert read_results(out) == [record]
    before = out.read_bytes()
    again = run_plan(cells, bundles, out, cache=tmp_path, limit_minutes=5, say=said.append)
    assert (again, out.read_bytes()) == ([], before)
    record["machine"] = record["machine"] | {"chip": "another"}
    out.write_text("")
    append(out, record)  # measured elsewhere, so not done here
    crash = [sys.executable, "-c", "raise SystemExit(3)"]
    (other,) = run_plan(cells, bundles, out, cache=tmp_path, limit_minutes=5, child=crash)
    assert other["reason"].startswith("its process failed with exit code 3")


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", "SIGKILL"),
        ("import time; time.sleep(60)", "timed out", "took longer than"),
        ("raise RuntimeError('boom')", "failed", "RuntimeError: boom"),
    ],
)
def test_a_cell_that_dies_is_a_row_with_its_reason(
    tiny_bundle: Bundle, tmp_path: Path, code: str, status: str, says: str
) -> None:
    out = tmp_path / "r.jsonl"
    run_plan(
        [only(tiny_bundle, "sustained")],
        {tiny_bundle.manifest.digest: tiny_bundle},
        out,
        cache=tmp_path,
        limit_minutes=0.02 if status == "timed out" else 5,
        child=[sys.executable, "-c", code],
    )
    (record,) = read_results(out)
    assert record["status"] == status
    assert says in record["reason"]
    assert record["pictures"] is None


def test_a_package_that_is_refused_is_a_row_with_its_reason(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """As a compile failure is on a Mac: here a package damaged after the bundle was opened."""
    copy = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle.path, copy)
    bundle = Bundle.open(copy)
    package = bundle.file(bundle.manifest.packages[-1].path)
    (model,) = package.rglob("*.mlmodel")
    model.write_bytes(model.read_bytes()[:100])
    record = record_of(only(bundle, "packages"), bundle, tmp_path)
    assert record["status"] == "failed"
    assert "not a Core ML model" in record["reason"]
    append(tmp_path / "r.jsonl", record)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has Core ML")
def test_core_ml_is_refused_elsewhere(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="need macOS"):
        engine_for("cpuOnly", tiny_bundle, "fp16", tmp_path)


def test_unfit_conditions_are_flagged() -> None:
    fit, hot = Conditions("nominal", False), Conditions("serious", False)
    assert violations(fit, fit) == []
    assert violations(Conditions(None, None), Conditions(None, None)) == []
    assert violations(hot, hot) == [
        "the thermal state was serious at the start, not nominal",
        "the thermal state was serious at the end",
    ]
    assert violations(Conditions("nominal", True), fit) == ["low-power mode was on at the start"]


def test_a_compute_plan_is_counted_by_operations_and_cost() -> None:
    """With answers of the shape that coremltools documents; Core ML itself is on a Mac only."""
    kinds = {
        name: type(name, (), {})
        for name in ("MLNeuralEngineComputeDevice", "MLGPUComputeDevice", "MLCPUComputeDevice")
    }
    table = {  # operation: device, cost; constants have neither
        "conv": ("MLNeuralEngineComputeDevice", 0.5),
        "norm": ("MLNeuralEngineComputeDevice", 0.25),
        "cast": ("MLCPUComputeDevice", 0.25),
        "const": None,
    }

    class Plan:
        def get_compute_device_usage_for_mlprogram_operation(self, operation: str) -> Any:
            row = table[operation]
            return row and type("Usage", (), {"preferred_compute_device": kinds[row[0]]()})()

        def get_estimated_cost_for_mlprogram_operation(self, operation: str) -> Any:
            row = table[operation]
            return row and type("Cost", (), {"weight": row[1]})()

    found = read_plan(Plan(), list(table))
    assert found.operations == {"neuralEngine": 2, "gpu": 0, "cpu": 1}
    assert found.cost_share == {"neuralEngine": 0.75, "gpu": 0.0, "cpu": 0.25}


def test_the_command_plans_and_asks_where_to_write(tiny_bundle: Bundle) -> None:
    words = ["device", str(tiny_bundle.path), "--steps", "2"]
    done = CliRunner().invoke(command, [*words, "--plan", "--json"])
    assert done.exit_code == 0, done.output
    cells = json.loads(done.stdout)["cells"]
    assert len(cells) == (5 if sys.platform != "darwin" else 20)
    assert all(cell["minutes"] > 0 for cell in cells)
    done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, MdmError)
    assert str(done.exception).startswith("out: say where the cells go")
    for words in (["--picture-repetitions", "9"], ["--package-repetitions", "29"]):
        assert CliRunner().invoke(command, ["device", str(tiny_bundle.path), *words]).exit_code == 2


@pytest.mark.parametrize("name", ["run", "report", "compare", "device"])
def test_help_of_every_subcommand_has_two_examples(name: str) -> None:
    text = CliRunner().invoke(command, [name, "--help"]).output
    assert text.partition("Examples:")[2].count(f"mdm bench {name}") == 2
    assert "--json" in text
    assert "--quiet" in text


# --- Core AI, on the interpreter of Apple's wheels ------------------------------------------------


@pytest.fixture(scope="module")
def core_ai(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "coreai.bundle"
    return converted(tiny_source, out, ConvertOptions(format="coreai"))


@needs_coreai
def test_core_ai_packages_are_loaded_twice_and_their_process_is_weighed(
    core_ai: Bundle, tmp_path: Path
) -> None:
    cell = only(core_ai, "packages")
    engine = engine_for(cell.units, core_ai, "fp16", tmp_path)
    found = measure(cell, core_ai, engine)
    names = {package.name for package in core_ai.manifest.packages}
    assert {load["package"] for load in found["loads"]} == names
    # no system keeps what was compiled here, so a second load is as long as a first one
    first, second = (sum(load[k] for load in found["loads"]) for k in ("first_s", "second_s"))
    assert first / 3 < second < 3 * first
    runtime = engine.load
    assert isinstance(runtime, AppleRuntime)
    assert runtime.children == 2
    assert runtime.peak_bytes is not None
    assert runtime.peak_bytes > 50e6
    own = peak_bytes()
    assert own is not None
    assert found["peak_bytes"] > own + 50e6
    assert (found["placement"], found["floor"]) == (None, None)


@needs_coreai
def test_a_core_ai_bundle_is_measured_by_the_command(core_ai: Bundle, tmp_path: Path) -> None:
    """Both kinds of cells in their own processes; the table says what nobody measured."""
    out = tmp_path / "r.jsonl"
    cells = [only(core_ai, kind) for kind in ("packages", "pictures")]
    records = run_plan(
        cells, {core_ai.manifest.digest: core_ai}, out, cache=tmp_path, limit_minutes=5
    )
    for record in records:
        assert (record["status"], record["reason"]) == ("measured", None)
        assert (record["engine"], record["format"]) == ("interpreter", "coreai")
        assert record["peak_bytes"] > 200e6
    assert records[1]["quality"]["prediction_psnr"] >= 50
    row = table("r", read_results(out)).splitlines()[-1].split("|")
    assert row[9].strip() == "not measured"  # the share on the Neural Engine


@needs_coreai
def test_a_plan_for_core_ai_names_no_minutes_and_needs_macos_27(
    core_ai: Bundle, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*more: str) -> Result:
        return CliRunner().invoke(command, ["device", "--plan", str(core_ai.path), *more])

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(release="25.4.0"))
    refused = planned()
    assert isinstance(refused.exception, MdmError)
    assert "Core AI is a part of macOS 27" in str(refused.exception)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(release="26.0.0"))
    *cells, total = planned().stdout.splitlines()
    assert len(cells) == 4 * (2 * ROUNDS + 1)
    assert all(line.startswith("not estimated") for line in cells)
    assert total == "20 cells, not estimated, nothing measured"
    assert (
        planned(str(tiny_bundle.path))
        .stdout.splitlines()[-1]
        .endswith("20 not estimated, nothing measured")
    )
    assert "leave the option out" in str(planned("--precision", "fp32").exception)


@needs_coreai
def test_memory_counts_the_largest_process_so_far(core_ai: Bundle) -> None:
    """A large one that has ended still counts, and a killed one hides nothing."""
    runtime = AppleRuntime()
    assert runtime.peak_bytes is None
    runtime.census(core_ai.file("core_8.aimodel"))  # imports more than a load does
    largest = runtime.peak_bytes
    assert largest is not None
    runtime.start_afresh()
    try:
        assert runtime.process is not None
        smaller = peak_bytes(runtime.process)
        assert smaller is not None
        assert smaller < largest <= (runtime.peak_bytes or 0)
    finally:
        runtime.close()
    assert peak_bytes(1 << 30) is None  # no such process
