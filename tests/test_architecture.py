"""Who may import whom (docs/architecture.md), read from the source and from a running process."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from import_graph import ROOT, graph, imports_of, module_files, package_of

from mdm_apple.cli import COMMANDS

HEAVY = ("torch", "mlx", "coremltools", "fsspec")
BACKENDS = ("mdm_apple.torch", "mdm_apple.mlx")
CONVERSION = "mdm_apple.conversion"
# The rooms that may reach conversion, and only when they run.
OPENERS = tuple(f"mdm_apple.{room}" for room in ("api", "cli", "demo", "model", "open_model"))
UPPER_FLOORS = (*OPENERS, CONVERSION, "benchmarks")
FILES = module_files()
FRONT = ("mdm_apple", "mdm_apple.__main__", CONVERSION)  # hand the rooms out, and are none
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def offences(
    modules: tuple[str, ...],
    packages: tuple[str, ...],
    also_when_run: bool = True,
    but: tuple[str, ...] = (),
) -> list[str]:
    """Imports of `packages` below `modules`, save those below `but`, as `file:line module`."""
    chosen = {
        m: f
        for m, f in FILES.items()
        if within(m, modules) and not within(m, but) and m not in FRONT
    }
    assert chosen, modules
    return [
        f"{file.relative_to(ROOT)}:{found.line} {found.module}"
        for module, file in chosen.items()
        for found in imports_of(file.read_text(encoding="utf-8"), package_of(module, file))
        if within(found.module, packages) and (also_when_run or not found.when_run)
    ]


def room_of(module: str) -> str:
    """`mdm_apple.data.folder` is in `data`, `mdm_apple.conversion.run.serve` in `conversion/run`.

    A file that lies beside the rooms is a room of its own.
    """
    below = module.removeprefix(f"{CONVERSION}.")
    if below != module:
        return f"conversion/{below.split('.')[0]}"
    return module.removeprefix("mdm_apple.").split(".")[0]


def rooms_of_the_page() -> list[str]:
    """The rooms of docs/architecture.md, from the ground up; the page begins with the top floor."""
    table = PAGE.partition("## Rooms")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([a-z_/]+)` \|", table, re.MULTILINE)[::-1]


def test_the_scan_finds_every_way_to_import() -> None:
    source = """
import torch.nn as nn
from mdm_apple import torch
from ..execute.graph import Function
from . import errors
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
    found = {(i.module, i.when_run) for i in imports_of(source, "mdm_apple.conversion.run")}
    assert found == {
        ("torch.nn", False),
        ("mdm_apple.torch", False),
        ("mdm_apple.conversion.execute.graph.Function", False),
        ("mdm_apple.conversion.run.errors", False),
        ("mlx", False),
        ("conversion.execute", False),
        ("coremltools", True),
        ("benchmarks", True),
        ("benchmarks.table", True),
    }
    assert within("torch.nn", HEAVY)
    assert not within("torchvision", HEAVY)


# --- rooms ------------------------------------------------------------------------------------


def test_the_page_names_exactly_the_rooms_that_exist() -> None:
    rooms = {room_of(m) for m in FILES if m not in FRONT}
    assert sorted(rooms_of_the_page()) == sorted(rooms)


def test_the_drawing_shows_every_room() -> None:
    drawing = PAGE.split("```\n")[1]
    shown = set(re.findall(r"[a-z_]+", re.sub(r" {3,}\S+ \S.*| ·.*", "", drawing)))
    assert {room.rpartition("/")[2] for room in rooms_of_the_page()} <= shown


def test_each_room_imports_only_rooms_below_it() -> None:
    floors = {room: floor for floor, room in enumerate(rooms_of_the_page())}
    upward = [
        f"{module} -> {target}"
        for module, targets in graph(FILES).items()
        for target in targets
        if {module, target}.isdisjoint(FRONT)
        if room_of(module) != room_of(target)
        if floors[room_of(module)] < floors[room_of(target)]
    ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        tuple(TopologicalSorter(graph(FILES)).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {error.args[1]}")


def test_a_circle_would_be_found() -> None:
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).static_order())


QUESTIONS = re.findall(r"^\| (.+?\?) \| `([\w/]+\.(?:py|swift))` \| `(\w+)` \|", PAGE, re.MULTILINE)


def test_the_page_answers_what_a_newcomer_asks() -> None:
    assert len(QUESTIONS) >= 12


@pytest.mark.parametrize(("question", "file", "name"), QUESTIONS)
def test_the_file_that_answers_a_question_defines_the_name(
    question: str, file: str, name: str
) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".swift"):
        assert re.search(rf"\b(struct|func|enum|class|protocol|actor) {name}\b", text), question
        return
    body = ast.parse(text).body
    assigned = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    names = {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert name in names | {t.id for t in assigned if isinstance(t, ast.Name)}, question


def test_nothing_imports_conversion_under_a_name_that_is_not_installed() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{i.line}"
        for folder in ("benchmarks", "conversion", "examples", "mdm_apple", "tests")
        for file in (ROOT / folder).rglob("*.py")
        if file.name != Path(__file__).name
        for i in imports_of(file.read_text(encoding="utf-8"))
        if within(i.module, ("conversion",))
    ]
    assert found == []


# --- frameworks -------------------------------------------------------------------------------


def test_the_library_imports_no_framework_and_no_upper_floor() -> None:
    aside = (*OPENERS, *BACKENDS, CONVERSION)
    assert offences(("mdm_apple",), (*HEAVY, *BACKENDS, *UPPER_FLOORS), but=aside) == []


def test_torch_and_mlx_never_import_each_other() -> None:
    assert offences(("mdm_apple.torch",), ("mlx", "mdm_apple.mlx")) == []
    assert offences(("mdm_apple.mlx",), ("torch", "mdm_apple.torch")) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_import_no_upper_floor(backend: str) -> None:
    assert offences((backend,), (*UPPER_FLOORS, "coremltools")) == []


def test_the_upper_rooms_import_frameworks_and_conversion_only_when_they_run() -> None:
    late = (*HEAVY, *BACKENDS, CONVERSION, "benchmarks")
    present = tuple(o for o in OPENERS if any(within(m, (o,)) for m in FILES))
    assert offences(present, late, also_when_run=False) == []


def test_conversion_reaches_neither_the_rooms_above_it_nor_the_benchmarks() -> None:
    assert offences((CONVERSION,), (*OPENERS, "benchmarks")) == []


@pytest.mark.parametrize("floor", ["mdm_apple", "conversion", "benchmarks", "tests"])
def test_a_backend_is_never_imported_under_the_name_of_its_framework(floor: str) -> None:
    """`from mdm_apple import torch` would hide the framework in the rest of the file."""
    shadowing = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / floor).rglob("*.py")
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
    "module",
    [
        "mdm_apple.cli",
        "mdm_apple.training.run",
        "mdm_apple.sampling.generate",
        "mdm_apple.data.shards.shard_pictures",
    ],
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
folder = pathlib.Path(mdm_apple.__file__).parent / package
for file in sorted(folder.rglob("[a-z]*.py")):
    inside = ".".join(file.relative_to(folder).with_suffix("").parts)
    importlib.import_module(f"mdm_apple.{package}.{inside}")
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
