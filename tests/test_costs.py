"""Marks of cost are read right, and hold while a test runs."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
from costs import COSTS, CostOfTests
from mil_programs import package

from mdm_apple.conversion.bundle.folder import Bundle


@pytest.fixture
def costs(request: pytest.FixtureRequest) -> CostOfTests:
    found = request.config.pluginmanager.get_plugin("costs")
    assert isinstance(found, CostOfTests)
    return found


def starts() -> None:
    subprocess.run([sys.executable], check=True)


class Program:
    def run(self) -> None:
        starts()


@cache
def through_a_class() -> None:
    Program().run()


def inside_another_function() -> None:
    def later() -> None:
        starts()

    later()


def through_another_file() -> None:
    package  # noqa: B018


def opens(bundle: Bundle) -> None:
    Bundle.open(bundle.path)


def reads(bundle: Bundle) -> tuple[int, ...]:
    return bundle.sides


def test_every_way_to_a_door_is_seen(costs: CostOfTests) -> None:
    ways = (starts, through_a_class, inside_another_function, through_another_file, opens)
    assert [costs.opens(way) for way in ways] == [True] * len(ways)


def test_a_name_in_a_signature_costs_nothing(costs: CostOfTests) -> None:
    assert not costs.opens(reads)


def test_this_is_a_unit_test_and_the_next_is_not(request: pytest.FixtureRequest) -> None:
    assert [cost for cost in COSTS if request.node.get_closest_marker(cost)] == ["unit"]


def test_a_process_is_heard_while_a_unit_test_runs(
    costs: CostOfTests, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert request.node.get_closest_marker("bundle")
    monkeypatch.setattr(costs, "watching", True)
    subprocess.run(["true"], check=True)
    monkeypatch.undo()
    heard = [*costs.seen]
    costs.seen.clear()
    assert heard == ["subprocess.Popen true"]
