"""Which tests guard a defect that was found elsewhere: @pytest.mark.guards("the defect").

In Swift the line above a test says `// guards: the defect`.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SWIFT_GUARD = re.compile(r"^ *// guards: (.+)\n(?: *@.*\n)* *(?:@Test.*)?func \w+.*\{\n", re.M)


class CollectedTests:
    """All that was collected, before -m chooses."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.items = list(items)

    def guards(self) -> dict[str, list[pytest.Item]]:
        """By defect; those that never run do not count."""
        found: dict[str, list[pytest.Item]] = {}
        for item in self.items:
            if not any(item.get_closest_marker(mark) for mark in ("skip", "xfail", "slow")):
                for mark in item.iter_markers("guards"):
                    found.setdefault(mark.args[0], []).append(item)
        return found


def can_fail(test: Callable[..., Any]) -> bool:
    """Whether the test, or a function of its own file that it calls, checks anything."""
    here, seen, pending = inspect.unwrap(test).__globals__, set[str](), [test]
    while pending:
        tree = ast.parse(textwrap.dedent(inspect.getsource(pending.pop())))
        if any(_checks(node) for node in ast.walk(tree)):
            return True
        called = {n.func.id for n in ast.walk(tree) if _calls_by_name(n)}
        mine = [
            n for n in called - seen if getattr(here.get(n), "__module__", "") == here["__name__"]
        ]
        seen |= called
        pending += [here[name] for name in mine if inspect.isfunction(here[name])]
    return False


def _calls_by_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _checks(node: ast.AST) -> bool:
    """An assertion about something that was computed, or a refusal that is demanded."""
    if isinstance(node, ast.Assert):
        return any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node.test))
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises"


def swift_guards(folder: Path) -> dict[str, list[str]]:
    """By defect the bodies of the Swift tests that guard it."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.swift")):
        text = file.read_text(encoding="utf-8")
        for match in SWIFT_GUARD.finditer(text):
            indent = len(match[0]) - len(match[0].lstrip(" "))
            body = text[match.end() :].partition(f"\n{' ' * indent}}}\n")[0]
            found.setdefault(match[1], []).append(body)
    return found
