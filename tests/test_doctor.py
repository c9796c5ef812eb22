"""What the doctor recommends, and why; the cells are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from device_records import cell, floor

from mdm_apple.cli.doctor_command import command
from mdm_apple.conversion.device.doctor import HARNESS_ONLY, advise
from mdm_apple.conversion.device.results import ResultError, append, read_results
from mdm_apple.conversion.device.table import table


def test_the_fastest_fit_bundle_and_unit_is_recommended() -> None:
    cells = [
        cell("a.bundle", "cpuAndNeuralEngine", seconds=0.5),
        cell("a.bundle", "cpuAndGPU", seconds=0.8),
        cell("b.bundle", "cpuAndNeuralEngine", seconds=0.9),
    ]
    advice = advise(cells)
    assert advice.best is not None
    assert (advice.best.bundle, advice.best.units) == ("a.bundle", "cpuAndNeuralEngine")
    assert "0.50 s per picture of 4 steps" in advice.reason
    assert "the next is a.bundle (Core ML, nested, fp16) on cpuAndGPU with 0.80 s" in advice.reason
    cells[1]["pictures"][0]["seconds"] = [0.1] * 5
    other = advise(cells).best
    assert other is not None
    assert other.units == "cpuAndGPU"


def test_rounds_are_pooled() -> None:
    cells = [
        cell("a.bundle", seconds=0.1, number=1),
        cell("a.bundle", seconds=3.0, number=2),
        cell("b.bundle", seconds=1.0),
    ]
    best = advise(cells).best
    assert best is not None
    assert best.bundle == "b.bundle", "the median of both rounds of a is 1.55 s"


def test_of_equally_fast_bundles_the_smallest_is_taken() -> None:
    cells = [cell("big", seconds=1.0, size=100), cell("small", seconds=1.04, size=50)]
    best = advise(cells).best
    assert best is not None
    assert best.bundle == "small"
    cells[1] = cell("small", seconds=1.2, size=50)
    best = advise(cells).best
    assert best is not None
    assert best.bundle == "big"


def test_of_equally_fast_formats_core_ml_is_taken() -> None:
    """It runs on more systems, even where its packages are a little larger."""
    cells = [
        cell("ml", seconds=1.02, size=51),
        cell("ai", seconds=1.0, size=50, engine="coreai", format="coreai"),
    ]
    best = advise(cells).best
    assert best is not None
    assert best.bundle == "ml"
    cells[0] = cell("ml", seconds=1.2, size=51)
    best = advise(cells).best
    assert best is not None
    assert best.bundle == "ai"


def test_a_silent_fallback_to_the_cpu_is_named_and_not_recommended() -> None:
    cells = [
        cell("a", "cpuAndNeuralEngine", seconds=0.5),
        cell("a", "cpuAndNeuralEngine", "packages", floor=floor(0.0100, 0.0101)),
        cell("a", "cpuAndGPU", seconds=0.8),
    ]
    advice = advise(cells)
    assert advice.best is not None
    assert advice.best.units == "cpuAndGPU"
    (note,) = advice.notes
    assert "core_64 took 10.0 ms and 10.1 ms on the CPU alone: it fell back to the CPU" in note
    cells[1]["floor"] = floor(0.0010, 0.0101)
    assert advise(cells).notes == ()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"psnr": 12.0}, "reach 12.0 dB, below 20"),
        ({"quality": None}, "quality of its pictures was not measured"),
        ({"status": "killed", "reason": "ended by SIGKILL"}, "killed, ended by SIGKILL"),
    ],
)
def test_what_is_not_fit_is_named_and_not_recommended(bad: dict[str, object], says: str) -> None:
    advice = advise([cell("a", seconds=0.1, **bad), cell("b", seconds=9.0)])  # type: ignore[arg-type]
    assert advice.best is not None
    assert advice.best.bundle == "b"
    assert any(says in note for note in advice.notes)
    assert advise([cell("a", **bad)]).best is None  # type: ignore[arg-type]


def test_doubts_throttling_and_cold_loads_are_said() -> None:
    slow = [{"seconds": s, "thermal": "fair"} for s in (1.0, 1.1, 2.0)]
    loads = [{"package": "core", "first_s": 100.0, "second_s": 0.5, "cold": True}]
    advice = advise(
        [
            cell("a", violations=["low-power mode was on at the start"]),
            cell("a", kind="sustained", sustained=slow),
            cell("a", kind="packages", loads=loads),
        ]
    )
    text = "\n".join(advice.notes)
    assert "doubtful, low-power mode was on" in text
    assert "picture 3 in a row took 2.0 times as long as the first" in text
    assert "the first load took 100.0 s" in text


def test_results_of_the_executor_prove_the_harness_only() -> None:
    advice = advise([cell(units="executor", engine="executor")])
    assert (advice.best, advice.reason, advice.harness_only) == (None, HARNESS_ONLY, True)
    mixed = advise([cell(units="executor", engine="executor", seconds=0.01), cell(seconds=5.0)])
    assert mixed.best is not None
    assert mixed.best.units == "cpuAndNeuralEngine"
    assert any("cells of stand-ins were left out" in note for note in mixed.notes)


def test_cells_of_two_devices_are_not_mixed() -> None:
    other = cell("b")
    other["machine"] = other["machine"] | {"model": "Mac9,9"}
    advice = advise([cell("a"), other])
    assert advice.best is None
    assert "several devices" in advice.reason


def test_the_table_says_what_was_not_measured() -> None:
    page = table("mac", [cell("a", seconds=0.5), cell("b", kind="packages", quality=None)])
    first, second = [
        line for line in page.splitlines() if ".bundle" in line or "| a," in line or "| b," in line
    ]
    assert "4 steps 500.0 ms" in first
    assert "40.0 dB" in first
    assert second.count("not measured") == 6


def test_the_command_reads_a_file_and_refuses_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "mac.jsonl"
    append(path, cell("a", seconds=0.5))
    append(path, cell("b", seconds=0.4))
    done = CliRunner().invoke(command, [str(path), "--json"])
    assert json.loads(done.stdout)["recommended"]["bundle"] == "b"
    assert (
        CliRunner()
        .invoke(command, [str(path)])
        .stdout.startswith("Ship b (Core ML, nested, fp16) on")
    )
    for name, text in (("empty", ""), ("text", "hello\n"), ("other", '{"schema": 1}\n')):
        (tmp_path / name).write_text(text)
        done = CliRunner().invoke(command, [str(tmp_path / name)])
        assert isinstance(done.exception, ResultError)
    with pytest.raises(ResultError, match="no such file"):
        read_results(tmp_path / "none")


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "mac.jsonl"
    append(path, cell("a"))
    append(path, cell("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert [r["bundle"] for r in read_results(path)] == ["a"]
    append(path, cell("b"))
    assert path.read_bytes() == whole
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(ResultError, match="line 1"):
        read_results(path)


def test_a_second_load_that_was_not_made_proves_nothing_cold(tmp_path: Path) -> None:
    load = {"package": "core", "first_s": 9.0, "second_s": None, "cold": False}
    append(tmp_path / "a", cell(loads=[load]))
    with pytest.raises(ResultError, match="cold"):
        append(tmp_path / "a", cell(loads=[load | {"cold": True}]))
