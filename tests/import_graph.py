"""Which module imports which, read from the source; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The folder `conversion` is installed as mdm_apple.conversion (mdm_apple/conversion links to it).
PACKAGES = {"mdm_apple": "mdm_apple", "conversion": "mdm_apple.conversion"}


@dataclass(frozen=True)
class Import:
    module: str  # absolute; `from a import b` counts as a.b
    line: int
    when_run: bool  # inside a function, or for type checkers only


@cache
def imports_of(source: str, package: str = "") -> tuple[Import, ...]:
    """Every import in the text of a module that lies in `package`."""
    return tuple(_imports(ast.parse(source), package, when_run=False))


def module_files() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    return {
        _dotted(file.relative_to(ROOT / folder), package): file
        for folder, package in PACKAGES.items()
        for file in sorted((ROOT / folder).rglob("*.py"))
        if not file.is_relative_to(ROOT / "mdm_apple" / "conversion")
    }


def package_of(module: str, file: Path) -> str:
    """The package that relative imports of a module start from."""
    return module if file.name == "__init__.py" else module.rpartition(".")[0]


def graph(files: Mapping[str, Path], also_when_run: bool = True) -> dict[str, set[str]]:
    """For each module the modules among `files` that it imports: at once, or later as well."""
    return {
        module: {
            target
            for found in imports_of(file.read_text(encoding="utf-8"), package_of(module, file))
            if also_when_run or not found.when_run
            if (target := _defined_in(found.module, files)) is not None and target != module
        }
        for module, file in files.items()
    }


def closures(files: Mapping[str, Path]) -> Callable[[str], frozenset[str]]:
    """Asked for a module: itself and all that it imports, directly or not, with their packages.

    Of a package only what it imports at once counts: `mdm_apple` itself is a door, which opens
    everything later and on request.
    """
    ever, at_once = graph(files), graph(files, also_when_run=False)

    @cache
    def reached(start: str) -> frozenset[str]:
        found, pending = set[str](), [start]
        while pending:
            module = pending.pop()
            if module not in found and module in files:
                found.add(module)
                arrows = at_once if files[module].name == "__init__.py" else ever
                pending += [*arrows[module], module.rpartition(".")[0]]
        return frozenset(found)

    return reached


def _defined_in(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that is `name`, or that defines it."""
    return next((n for n in (name, name.rpartition(".")[0]) if n in files), None)


def _dotted(path: Path, package: str) -> str:
    return ".".join((package, *path.with_suffix("").parts)).removesuffix(".__init__")


def _imports(node: ast.AST, package: str, when_run: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(name.name, child.lineno, when_run)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, package)
            for name in child.names:
                yield Import(f"{base}.{name.name}", child.lineno, when_run)
        elif isinstance(child, ast.Call) and _called(child) == "import_module":
            named = child.args[0] if child.args else None
            if isinstance(named, ast.Constant):
                yield Import(str(named.value), child.lineno, when_run)
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        )
        yield from _imports(child, package, when_run or inside)


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    if not statement.level:
        return str(statement.module)
    parents = package.split(".")
    above = parents[: len(parents) - statement.level + 1]
    return ".".join([*above, *([statement.module] if statement.module else [])])


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
