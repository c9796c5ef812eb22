"""What a test costs, read from what it reaches: its mark is `unit`, `bundle` or `slow`.

`bundle` converts or runs bundles, or starts processes (Swift's programs among them): the test, a
fixture that it uses or a helper of tests/ that one of these calls mentions a door to that. Where a
command hides it, the test says @pytest.mark.bundle itself. A unit test that opens a package or
starts a process all the same fails.
"""

from __future__ import annotations

import inspect
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

COSTS = ("unit", "bundle", "slow")
HERE = str(Path(__file__).parent)
DOORS = {
    ("mdm_apple.conversion.convert", "convert"),
    ("mdm_apple.conversion.convert", "convert_part"),
    ("mdm_apple.conversion.coreml", "quiet_coremltools"),
    ("mdm_apple.conversion.compress.palettize", "palettize"),
    ("mdm_apple.conversion.execute.package", "Package"),
    ("mdm_apple.conversion.bundle.folder", "Bundle"),
}
STARTED = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")


class CostOfTests:
    """Marks what is collected, and holds unit tests to their mark while they run."""

    def __init__(self) -> None:
        self.known: dict[CodeType, bool] = {}
        self.watching = False
        self.seen: list[str] = []
        sys.addaudithook(self.heard)

    @pytest.hookimpl(tryfirst=True)  # before -m chooses
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if not any(item.get_closest_marker(cost) for cost in COSTS):
                item.add_marker("bundle" if self.reaches_a_door(item) else "unit")
            found = [cost for cost in COSTS if item.get_closest_marker(cost)]
            assert len(found) == 1, f"{item.nodeid}: expected one mark of cost, got {found}"

    def reaches_a_door(self, item: pytest.Item) -> bool:
        fixtures = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        functions = [item.obj, *(one.func for many in fixtures for one in many)]  # type: ignore[attr-defined]
        return any(self.opens(function) for function in functions)

    def opens(self, function: Callable[..., Any]) -> bool:
        """Whether the function or a helper of tests/ that it calls mentions a door."""
        function = inspect.unwrap(function)
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(HERE):
            return False
        if code not in self.known:
            self.known[code] = False  # where functions call each other
            here = function.__globals__
            names = {*names_in(code)}
            mentioned = [here[name] for name in names if name in here]
            self.known[code] = (
                "fork" in names
                or any(is_door(one) for one in mentioned)
                or any(self.opens(method) for one in mentioned for method in functions_of(one))
            )
        return self.known[code]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self.watched(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self.watched(item))

    def watched(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.seen.clear()
        self.watching = item.get_closest_marker("unit") is not None
        try:
            result = yield
        finally:
            self.watching = False
        if self.seen:
            pytest.fail(f"a unit test may not do this; mark it bundle: {self.seen[0]}")
        return result

    def heard(self, event: str, given: tuple[Any, ...]) -> None:
        if self.watching and (
            event in STARTED or (event == "open" and ".mlpackage/" in str(given[0]))
        ):
            self.seen.append(" ".join(map(str, (event, *given[:1]))))


def names_in(code: CodeType) -> Iterator[str]:
    """The names that a function mentions, and those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def is_door(thing: Any) -> bool:
    if thing is subprocess or thing is multiprocessing:
        return True
    return (getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)) in DOORS


def functions_of(thing: Any) -> list[Callable[..., Any]]:
    if inspect.isclass(thing):
        return [value for value in vars(thing).values() if inspect.isfunction(value)]
    return [thing] if callable(thing) else []
