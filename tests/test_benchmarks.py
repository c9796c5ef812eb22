"""The measurements run and report what they measured; no test here asks how fast anything is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import pareto, report
from benchmarks.harness import Pair, in_turn, machine


def test_work_is_timed_in_turn_and_the_warm_up_dropped() -> None:
    order: list[str] = []
    ours, other = in_turn(lambda: order.append("a"), lambda: order.append("b"), 3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert len(ours) == len(other) == 3


def test_ratio_is_that_of_medians() -> None:
    pair = Pair("name", "other", [1.0, 2.0, 30.0], [4.0, 4.0, 4.0], 0.0)
    assert pair.ratio == pytest.approx(0.5)


def test_results_page_is_what_the_result_files_say() -> None:
    committed = report.RESULTS.read_text(encoding="utf-8")
    assert report.render(report.HERE / "results") == committed


def test_results_page_changes_with_a_result(tmp_path: Path) -> None:
    for path in (report.HERE / "results").glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    assert report.render(tmp_path) == report.render(report.HERE / "results")
    changed = min(tmp_path.iterdir())
    result = json.loads(changed.read_text(encoding="utf-8"))
    result["pairs"][0]["ours_s"] = [123.0] * len(result["pairs"][0]["ours_s"])
    changed.write_text(json.dumps(result), encoding="utf-8")
    assert "| 123.000 |" in report.render(tmp_path)


def test_results_name_the_machine_and_the_command() -> None:
    assert machine()["threads"] >= 1
    for path in (Path(report.__file__).parent / "results").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["command"].startswith("python -m benchmarks")
        assert result["pairs"]


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
