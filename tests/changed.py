"""Which test files reach a file that has changed: `make quick` runs these first."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from import_graph import ROOT, closures, module_files


@dataclass(frozen=True)
class Changes:
    """Files that have changed. unknown: why git could not name them, if it could not."""

    files: frozenset[Path]
    unknown: str | None = None

    def remark(self) -> str | None:
        """A line about what these changes cannot tell; None if a test reaches each file."""
        if self.unknown is not None:
            return f"changed first: git could not name the changes ({self.unknown}); usual order."
        unreached = sorted(f for f in self.files if not reaching([f]))
        if not unreached:
            return None
        name, more = unreached[0].relative_to(ROOT), len(unreached) - 1
        named = f"{name} and {more} more" if more else f"{name}"
        return f"changed first: no test imports {named}; make test runs every test."


def changed_files(root: Path = ROOT) -> Changes:
    """Since the last commit, untracked ones too; in a clean checkout what that commit changed."""
    try:
        changed = _git(root, "diff", "--name-only", "HEAD") | _git(
            root, "ls-files", "--others", "--exclude-standard"
        )
        return Changes(changed or _git(root, "diff", "--name-only", "HEAD~1"))
    except FileNotFoundError:
        return Changes(frozenset(), "git is not installed")
    except subprocess.CalledProcessError as error:  # as HEAD~1 in a shallow checkout
        return Changes(frozenset(), error.stderr.splitlines()[0])


def reaching(changed: Iterable[Path]) -> set[Path]:
    """The files of tests/ that import one of the files, directly or not, or are among them.

    A data file, such as a schema, counts as a change of the modules that lie beside it.
    """
    changed = set(changed)
    folders = {path.parent for path in changed if path.suffix != ".py"}
    return {
        test
        for test, imported in _imported_by_tests().items()
        if any(file in changed or file.parent in folders for file in imported)
    }


@cache
def _imported_by_tests() -> dict[Path, frozenset[Path]]:
    files = module_files() | _named("benchmarks", "benchmarks.") | _named("tests", "")
    reached = closures(files)
    return {
        file: frozenset(files[module] for module in reached(name))
        for name, file in files.items()
        if file.parent == ROOT / "tests"
    }


def _named(folder: str, prefix: str) -> dict[str, Path]:
    return {prefix + file.stem: file for file in sorted((ROOT / folder).glob("*.py"))}


def _git(root: Path, *words: str) -> frozenset[Path]:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return frozenset(root / line for line in done.stdout.splitlines())
