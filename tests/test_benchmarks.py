"""The measurements run and report what they measured; no test here asks how fast anything is."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from device_records import cell

from benchmarks import networks, pareto, report, ship, store, training
from benchmarks import run as running
from benchmarks.compare import compare
from benchmarks.harness import Measured, Row, in_turn, machine
from benchmarks.plots import draw
from benchmarks.suites import ENTRIES, SUITES, Entry, entries_of
from mdm_apple.cli.bench_command import command
from mdm_apple.conversion.device.results import append
from mdm_apple.errors import MdmError

FOLDER = store.RESULTS / "linux_x86_64"


def committed(suite: str = "training") -> dict[str, Any]:
    return json.loads((FOLDER / f"{suite}.json").read_text(encoding="utf-8"))


def test_work_is_timed_in_turn_and_the_warm_up_dropped() -> None:
    order: list[str] = []
    ours, other = in_turn(
        lambda: order.append("a"), lambda: order.append("b"), repetitions=3, warm_up=1
    )
    assert order == ["a", "b"] * 4
    assert len(ours.values) == len(other.values) == 3


def test_cpu_seconds_are_those_of_work_and_not_of_waiting() -> None:
    waiting, working = in_turn(
        lambda: time.sleep(0.05), lambda: sum(range(2_000_000)), repetitions=1, warm_up=0
    )
    assert waiting.cpu_seconds is not None
    assert working.cpu_seconds is not None
    assert waiting.values[0] >= 0.05
    assert waiting.cpu_seconds[0] < 0.03
    assert working.cpu_seconds[0] > 0.01


def test_ratio_is_that_of_medians() -> None:
    row = Row("name", Measured([1.0, 2.0, 30.0]), "other", Measured([4.0, 4.0, 4.0]))
    assert row.ratio == pytest.approx(0.5)
    assert Row("name", Measured([1.0])).ratio is None


def test_summaries_are_those_of_the_values() -> None:
    measured = Measured([float(n) for n in range(1, 20)])
    assert (measured.median, measured.iqr) == (10, 9)
    assert measured.p95 is None, "19 values have no 95th percentile worth the name"
    assert Measured([float(n) for n in range(1, 22)]).p95 == pytest.approx(20)


# --- files --------------------------------------------------------------------------------------


def test_committed_results_are_as_the_schema_has_them() -> None:
    files = list(store.RESULTS.rglob("*.json"))
    assert files
    for path in files:
        for row in store.read(path):
            assert row["id"] in {entry.id for entry in ENTRIES}
            assert path.parent.name == store.machine_name(row["machine"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row["ours"]["values"].pop(), "too short"),
        (lambda row: row.pop("commit"), "'commit' is a required property"),
        (lambda row: row.update(seconds=1), "Additional properties"),
        (lambda row: row["ours"].update(p95=3.0), "ours"),
        (lambda row: row["ours"].update(median=1e-3), "the median of ours does not match"),
        (lambda row: row["machine"].update(threads=0), "threads"),
    ],
)
def test_a_spoiled_result_is_refused(change: Any, says: str) -> None:
    data = committed()
    row = data["rows"][0]
    row["ours"] = Measured(row["ours"]["values"][:5]).as_json()
    store.check(data, "file")
    change(row)
    with pytest.raises(MdmError, match=says):
        store.check(data, "file")


def test_a_row_measured_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    rows = committed()["rows"]
    assert store.write(tmp_path, rows) == [tmp_path / "linux_x86_64" / "training.json"]
    again = copy.deepcopy(rows[0]) | {"note": "again"}
    (path,) = store.write(tmp_path, [again])
    assert [row["note"] for row in store.read(path)] == ["again", *(r["note"] for r in rows[1:])]


def test_what_was_not_recorded_stays_null() -> None:
    """The first results come from a harness that recorded less; nothing was made up for them."""
    for row in (r for p in FOLDER.glob("*.json") for r in store.read(p)):
        if row["recorded"] is None:
            assert (row["commit"], row["model_sha256"], row["peak_bytes"]) == (None,) * 3


# --- suites and processes -----------------------------------------------------------------------


def test_every_suite_has_rows_and_the_short_set_is_short() -> None:
    assert [e.suite for e in ENTRIES] == sorted((e.suite for e in ENTRIES), key=SUITES.index)
    assert {e.suite for e in ENTRIES} == set(SUITES)
    assert len({e.id for e in ENTRIES}) == len(ENTRIES)
    short = entries_of([], short=True)
    assert 0 < sum(e.minutes for e in short) < 20
    assert {e.id for e in entries_of(["swift", "training/mlx"])} == {
        "training/mlx",
        *(e.id for e in ENTRIES if e.suite == "swift"),
    }


def test_an_unknown_suite_is_refused_with_the_near_name() -> None:
    with pytest.raises(MdmError, match="Did you mean 'training'"):
        entries_of(["trainin"])


def test_what_a_row_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("swift", "x", "x", lambda _, __: Row("x", Measured([1.0])), 1, needs="no_such_x")
    assert entry.missing() == "no_such_x is not installed"
    assert list(running.run([entry], 5, lambda _: None)) == [(entry, entry.missing())]
    monkeypatch.setenv("PATH", "/nowhere")
    assert entries_of(["swift/steps"])[0].missing() == "swift is not on the PATH"


@pytest.mark.bundle
def test_a_row_that_fails_leaves_its_reason() -> None:
    entry = Entry("training", "none", "x", lambda _, __: Row("x", Measured([1.0])), 1)
    ((_, reason),) = running.run([entry], 5, lambda _: None)  # its process knows no such row
    assert isinstance(reason, str)
    assert "'training/none' is not known" in reason


def test_forward_passes_are_compared_on_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDM_REFERENCE", raising=False)
    row = networks.forward_pass("tiny", "fp32", 1)
    assert (row.other_name, len(row.model_sha256 or "")) == ("plain eager", 64)
    assert row.difference is not None
    assert row.difference < 1e-5
    assert row.figures["SNR, dB"] > 90
    assert row.figures["GFLOP"] > 0
    assert 0 < row.figures["share of that peak"] < 2
    half = networks.forward_pass("tiny", "bf16", 1)
    assert half.model_sha256 == row.model_sha256, "weights are random by seed"
    assert 20 < half.figures["SNR, dB"] < 80


@pytest.mark.bundle
def test_memory_is_that_of_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDM_REFERENCE", raising=False)
    row = networks.forward_memory("tiny", 1)
    assert row.unit == "bytes"
    assert all(50e6 < side.values[0] < 2e9 for side in (row.ours, row.other) if side)


@pytest.mark.slow
def test_a_nested_training_step_has_the_loss_of_a_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MDM_REFERENCE", raising=False)
    row = training.training_step(training.NESTED, "64+16 px", 1)
    assert row.difference is not None
    assert row.difference < 1e-5


@pytest.mark.slow
def test_a_row_is_measured_and_stored_by_the_command(tmp_path: Path) -> None:
    words = ["run", "training/nested-64-16", "--out", str(tmp_path), "--json", "--quiet"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert row["difference"] < 1e-4
    assert row["peak_bytes"] > 100e6
    assert row["command"] == "mdm bench run training/nested-64-16 --repetitions 5"
    (path,) = tmp_path.rglob("*.json")
    assert store.read(path) == [row]


def test_the_list_says_what_would_be_measured() -> None:
    done = CliRunner().invoke(command, ["run", "swift", "--list", "--json"])
    rows = json.loads(done.stdout)["rows"]
    assert [row["id"] for row in rows] == ["swift/steps", "swift/normals", "swift/tokens"]


def test_fewer_than_five_repetitions_are_refused() -> None:
    done = CliRunner().invoke(command, ["run", "swift", "--repetitions", "4"])
    assert done.exit_code == 2
    assert "4 is not in the range" in done.output


def test_a_process_of_its_own_has_a_peak_of_its_own() -> None:
    """What the parent had must not count."""
    waste = bytearray(400 << 20)
    code = "from conversion.footprint import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=store.HERE.parent,
    )
    assert 0 < int(done.stdout) < len(waste)


# --- the page -----------------------------------------------------------------------------------


def test_results_page_and_plots_are_what_the_result_files_say() -> None:
    assert report.stale_files() == []


def test_results_page_changes_with_a_result(tmp_path: Path) -> None:
    shutil.copytree(store.RESULTS, tmp_path, dirs_exist_ok=True)
    assert report.made_of(tmp_path) == report.made_of(store.RESULTS)
    data = committed()
    for row in data["rows"]:
        row["ours"] = Measured([123.0] * 5).as_json()
        row["ratio"] = 123.0 / row["other"]["median"]
    (tmp_path / "linux_x86_64" / "training.json").write_text(json.dumps(data))
    changed, was = report.made_of(tmp_path), report.made_of(store.RESULTS)
    assert "| 123.000 s (0.00 ms)" in changed["RESULTS.md"].decode()
    assert changed["plots/linux_x86_64.svg"] != was["plots/linux_x86_64.svg"]


def test_rows_that_were_not_run_say_so_and_all_name_their_command(tmp_path: Path) -> None:
    data = committed()
    missing = data["rows"].pop()
    (tmp_path / "linux_x86_64").mkdir()
    (tmp_path / "linux_x86_64" / "training.json").write_text(json.dumps(data))
    lines = report.render(tmp_path).splitlines()
    for entry in ENTRIES:
        ends = (f"{entry.command}`", f"{entry.command} --repetitions")
        (line,) = [text for text in lines if any(end in text for end in ends)]
        measured = any(row["id"] == entry.id for row in data["rows"])
        assert ("| not measured | | | | |" in line) is not measured
    (line,) = [text for text in lines if f"{missing['id']}`" in text]
    assert "not measured" in line


def test_the_plot_of_the_same_rows_is_the_same() -> None:
    rows = store.read(FOLDER / "training.json")
    assert draw(rows) == draw(copy.deepcopy(rows))
    assert draw(rows) != draw(rows[:1])


def test_results_name_the_machine() -> None:
    here = machine()
    assert here["threads"] >= 1
    assert here["libraries"]["torch"]
    assert here["cores"]


# --- what became slower -------------------------------------------------------------------------


def slower(rows: list[dict[str, Any]], factor: float, both: bool) -> list[dict[str, Any]]:
    """The rows with ours, or the whole machine, slower by a factor."""
    out = copy.deepcopy(rows)
    for row in out:
        row["ours"]["median"] *= factor
        if both and row["other"] is not None:
            row["other"]["median"] *= factor
        if row["other"] is not None:
            row["ratio"] = row["ours"]["median"] / row["other"]["median"]
    return out


def test_a_regression_is_found_by_ratio_and_a_slow_machine_is_none() -> None:
    rows = store.read(FOLDER / "training.json")
    assert not any(c.worse for c in compare(rows, rows, 0.1))
    assert not any(c.worse for c in compare(rows, slower(rows, 3, both=True), 0.1))
    assert all(c.worse and c.basis == "ratio" for c in compare(rows, slower(rows, 1.2, False), 0.1))
    assert not any(c.worse for c in compare(rows, slower(rows, 1.2, False), 0.3))


def test_a_row_without_a_peer_is_compared_in_seconds_on_the_same_machine_only() -> None:
    alone = [{**row, "other": None, "ratio": None} for row in store.read(FOLDER / "training.json")]
    worse = slower(alone, 1.2, both=False)
    assert next((c.basis, c.worse) for c in compare(alone, worse, 0.1)) == ("median", True)
    for row in worse:
        row["machine"] = row["machine"] | {"chip": "another"}
    assert compare(alone, worse, 0.1) == []


def test_compare_exits_with_one_on_a_regression(tmp_path: Path) -> None:
    rows = store.read(FOLDER / "training.json")
    values = [3 * v for v in rows[0]["ours"]["values"]]
    worse = {**rows[0], "ours": Measured(values).as_json(), "ratio": 3 * rows[0]["ratio"]}
    store.write(tmp_path, [worse, *rows[1:]])
    old = str(FOLDER / "training.json")
    done = CliRunner().invoke(command, ["compare", old, str(tmp_path), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["worse"] == [rows[0]["id"]]
    assert CliRunner().invoke(command, ["compare", old, old]).exit_code == 0


# --- size against quality -----------------------------------------------------------------------


def test_plot_is_drawn_from_the_committed_results_alone(tmp_path: Path) -> None:
    results = json.loads(pareto.RESULTS.read_text(encoding="utf-8"))
    kinds = {point["kind"] for point in results["points"]}
    assert kinds >= {"fp16", "uniform", "mixed"}
    pareto.draw(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    for point in results["points"]:
        point["bytes"] *= 2
    pareto.draw(results, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


# --- the README's table -------------------------------------------------------------------------


def test_the_readme_says_what_the_results_say() -> None:
    assert ship.README.read_text(encoding="utf-8") == ship.readme_with_table()


def test_numbers_of_another_model_are_not_shown() -> None:
    pareto_results = json.loads(ship.PARETO.read_text(encoding="utf-8"))
    own = pareto_results["model"]["sha256"]
    assert "dB of 16 bits'" in ship.table(pareto_results, own, {})
    other = ship.table(pareto_results, "0" * 64, {})
    assert " dB" not in other
    assert other.count("| not measured | quality not measured on this model") == len(ship.NAMES)


def test_latency_comes_from_results_of_core_ml_alone(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    path = tmp_path / "device" / "mac.jsonl"
    append(path, cell(units="executor", engine="executor", seconds=0.1))
    assert ship.device_latencies(tmp_path) == {}
    append(path, cell(seconds=0.5))
    latencies = ship.device_latencies(tmp_path)
    assert latencies == {"fp16": "0.50 s for 4 steps on cpuAndNeuralEngine, mac"}
    pareto_results = json.loads(ship.PARETO.read_text(encoding="utf-8"))
    assert latencies["fp16"] in ship.table(pareto_results, None, latencies)
