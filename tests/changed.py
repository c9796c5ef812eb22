"""Which test files reach a file that has changed: `make quick` runs these first."""

from __future__ import annotations

import subprocess
from pathlib import Path

from import_graph import ROOT, closures, module_files


def changed_files() -> set[Path]:
    """Since the last commit, untracked ones too; in a clean checkout what that commit changed."""
    changed = _git("diff", "--name-only", "HEAD") | _git(
        "ls-files", "--others", "--exclude-standard"
    )
    return changed or _git("diff", "--name-only", "HEAD~1")


def reaching(changed: set[Path]) -> set[Path]:
    """The files of tests/ that import one of the files, directly or not, or are among them."""
    files = module_files() | _named("benchmarks", "benchmarks.") | _named("tests", "")
    reached = closures(files)
    return {
        file
        for name, file in files.items()
        if file.parent == ROOT / "tests" and any(files[m] in changed for m in reached(name))
    }


def _named(folder: str, prefix: str) -> dict[str, Path]:
    return {prefix + file.stem: file for file in sorted((ROOT / folder).glob("*.py"))}


def _git(*words: str) -> set[Path]:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return {ROOT / line for line in done.stdout.splitlines()}
