"""`make quick` finds the test files that a change reaches."""

from __future__ import annotations

from changed import reaching
from import_graph import ROOT

TESTS = ROOT / "tests"


def names(*changed: str) -> set[str]:
    return {file.name for file in reaching({ROOT / name for name in changed})}


def test_tests_that_import_a_changed_file_are_reached_and_others_are_not() -> None:
    found = names("conversion/compress/kmeans.py")
    assert {"test_kmeans.py", "test_mixed.py", "bundles.py"} <= found
    assert not {"test_config.py", "test_schedule.py", "test_fetch.py"} & found


def test_a_helper_of_tests_reaches_its_users() -> None:
    found = names("tests/small.py")
    assert {"small.py", "test_unet.py"} <= found
    assert "test_schedule.py" not in found


def test_a_page_of_the_handbook_reaches_no_test() -> None:
    assert names("docs/architecture.md") == set()
