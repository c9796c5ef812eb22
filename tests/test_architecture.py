"""Who may import whom (docs/architecture.md), read from the source and from a running process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mdm_apple.cli import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "mlx", "coremltools")
UPPER_FLOORS = ("mdm_apple.cli", "conversion", "benchmarks")


@dataclass(frozen=True)
class Import:
    module: str  # `from a import b` counts as a.b
    line: int
    when_run: bool  # inside a function, or for type checkers only


def imports_of(source: str) -> Iterator[Import]:
    yield from _imports(ast.parse(source), when_run=False)


def _imports(node: ast.AST, when_run: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(name.name, child.lineno, when_run)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            for name in child.names:
                yield Import(f"{child.module}.{name.name}", child.lineno, when_run)
        elif isinstance(child, ast.Call) and _called(child) == "import_module":
            named = child.args[0] if child.args else None
            if isinstance(named, ast.Constant):
                yield Import(str(named.value), child.lineno, when_run)
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        )
        yield from _imports(child, when_run or inside)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def offences(pattern: str, packages: tuple[str, ...], also_when_run: bool = True) -> list[str]:
    """Imports of `packages` in the files that match, as `file:line module`."""
    files = sorted(ROOT.glob(pattern))
    assert files, pattern
    return [
        f"{file.relative_to(ROOT)}:{found.line} {found.module}"
        for file in files
        for found in imports_of(file.read_text(encoding="utf-8"))
        if within(found.module, packages) and (also_when_run or not found.when_run)
    ]


def test_the_scan_finds_every_way_to_import() -> None:
    source = """
import torch.nn as nn
from mdm_apple import torch
if True:
    import mlx
if TYPE_CHECKING:
    import benchmarks.table
class A:
    from conversion import execute
def f():
    import coremltools
    return importlib.import_module("benchmarks")
"""
    found = {(i.module, i.when_run) for i in imports_of(source)}
    assert found == {
        ("torch.nn", False),
        ("mdm_apple.torch", False),
        ("mlx", False),
        ("conversion.execute", False),
        ("coremltools", True),
        ("benchmarks", True),
        ("benchmarks.table", True),
    }
    assert within("torch.nn", HEAVY)
    assert not within("torchvision", HEAVY)


def test_the_library_imports_no_framework_and_no_upper_floor() -> None:
    backends = ("mdm_apple.torch", "mdm_apple.mlx")
    assert offences("mdm_apple/*.py", (*HEAVY, *backends, *UPPER_FLOORS)) == []


def test_torch_and_mlx_never_import_each_other() -> None:
    assert offences("mdm_apple/torch/**/*.py", ("mlx", "mdm_apple.mlx")) == []
    assert offences("mdm_apple/mlx/**/*.py", ("torch", "mdm_apple.torch")) == []


@pytest.mark.parametrize("backend_folder", ["torch", "mlx"])
def test_backends_import_no_upper_floor(backend_folder: str) -> None:
    pattern = f"mdm_apple/{backend_folder}/**/*.py"
    assert offences(pattern, (*UPPER_FLOORS, "coremltools")) == []


def test_commands_import_frameworks_and_other_floors_only_when_they_run() -> None:
    late = (*HEAVY, "mdm_apple.torch", "mdm_apple.mlx", "conversion", "benchmarks")
    assert offences("mdm_apple/cli/*.py", late, also_when_run=False) == []


def test_conversion_reaches_neither_the_command_line_nor_the_benchmarks() -> None:
    assert offences("conversion/**/*.py", ("mdm_apple.cli", "benchmarks")) == []


@pytest.mark.parametrize("floor", ["mdm_apple", "conversion", "benchmarks", "tests"])
def test_a_backend_is_never_imported_under_the_name_of_its_framework(floor: str) -> None:
    """`from mdm_apple import torch` would hide the framework in the rest of the file."""
    shadowing = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in ROOT.glob(f"{floor}/**/*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "mdm_apple"
        if {"torch", "mlx"} & {name.name for name in node.names}
    ]
    assert shadowing == []


# --- in a process -----------------------------------------------------------------------------

ASK_FOR_HELP = f"""
import json, sys
from click.testing import CliRunner
from mdm_apple.cli import group
answers = {{}}
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(group, [*command, "--help"])
    loaded = sorted(set({HEAVY}) & set(sys.modules))
    answers[" ".join(command)] = [result.exit_code, result.output, loaded]
print(json.dumps(answers))
"""

WRITTEN = sorted(
    p.stem.removesuffix("_command").replace("_", "-")
    for p in ROOT.glob("mdm_apple/cli/*_command.py")
)


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, text and heavy modules loaded so far, for `--help` of each command in a row."""
    commands = [[], *([name] for name in WRITTEN)]
    done = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout)


def test_help_lists_every_command_and_loads_no_framework(
    helps: dict[str, tuple[int, str, list[str]]],
) -> None:
    code, text, loaded = helps[""]
    assert (code, loaded) == (0, [])
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", WRITTEN)
def test_help_of_a_command_shows_two_examples_and_loads_no_framework(
    name: str, helps: dict[str, tuple[int, str, list[str]]]
) -> None:
    code, text, loaded = helps[name]
    assert (code, loaded) == (0, [])
    examples = text.partition("Examples:")[2]
    assert examples.count(f"mdm {name} ") == 2


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_offers_json_and_quiet(
    name: str, helps: dict[str, tuple[int, str, list[str]]]
) -> None:
    assert "--json" in helps[name][1]
    assert "--quiet" in helps[name][1]


def test_every_listed_command_has_a_module_and_the_reverse() -> None:
    assert sorted(COMMANDS) == WRITTEN


@pytest.mark.parametrize(
    "module", ["mdm_apple.cli", "mdm_apple.training.run", "mdm_apple.sampling.generate"]
)
def test_importing_the_library_loads_no_framework(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


LOAD_ALL = """
import importlib, pathlib, sys
import mdm_apple.training.run, mdm_apple.sampling.generate, mdm_apple.training.memory_estimate
package, other = sys.argv[1:]
folder = pathlib.Path(mdm_apple.training.run.__file__).parent / package
for file in sorted(folder.glob("[a-z]*.py")):
    importlib.import_module(f"mdm_apple.{package}.{file.stem}")
print(package in sys.modules, other in sys.modules)
"""


@pytest.mark.parametrize(("package", "other"), [("torch", "mlx"), ("mlx", "torch")])
def test_every_module_of_a_backend_loads_without_the_other_framework(
    package: str, other: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, package, other],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.split() == ["True", "False"]
