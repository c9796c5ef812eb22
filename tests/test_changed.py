"""`make quick` finds the test files that a change reaches."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from changed import Changes, changed_files, reaching
from import_graph import ROOT

TESTS = ROOT / "tests"


def names(*changed: str) -> set[str]:
    return {file.name for file in reaching({ROOT / name for name in changed})}


def remark(*changed: str) -> str | None:
    return Changes(frozenset(ROOT / name for name in changed)).remark()


def test_tests_that_import_a_changed_file_are_reached_and_others_are_not() -> None:
    found = names("conversion/compress/kmeans.py")
    assert {"test_kmeans.py", "test_mixed.py", "bundles.py"} <= found
    assert not {"test_config.py", "test_schedule.py", "test_fetch.py"} & found


def test_a_helper_of_tests_reaches_its_users() -> None:
    found = names("tests/small.py")
    assert {"small.py", "test_unet.py"} <= found
    assert "test_schedule.py" not in found


def test_a_data_file_reaches_what_the_modules_beside_it_reach() -> None:
    assert names("conversion/device/result.schema.json") == names(
        *(str(f.relative_to(ROOT)) for f in (ROOT / "conversion" / "device").glob("*.py"))
    )
    assert "test_demo.py" in names("mdm_apple/demo/report.html")
    assert "test_schedule.py" not in names("mdm_apple/demo/report.html")


def test_a_file_that_no_test_imports_is_named() -> None:
    page, old = "docs/architecture.md", "tests/old/resumed.json"
    assert names(page, old) == set()
    advice = "make test runs every test."
    assert remark(page) == f"changed first: no test imports {page}; {advice}"
    assert remark(old, page) == f"changed first: no test imports {page} and 1 more; {advice}"
    assert remark("mdm_apple/errors.py", "mdm_apple/demo/report.html") is None


@pytest.mark.bundle
def test_a_checkout_with_one_commit_or_none_says_that_git_cannot_name_changes(
    tmp_path: Path,
) -> None:
    assert "git could not name the changes (" in (changed_files(tmp_path).remark() or "")
    (tmp_path / "a.txt").write_text("a")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "a.txt"], [*author, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert "HEAD~1" in (changed_files(tmp_path).remark() or "")
    (tmp_path / "b.txt").write_text("b")
    assert changed_files(tmp_path) == Changes(frozenset({tmp_path / "b.txt"}))
