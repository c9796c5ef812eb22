"""What the Swift sources must not hold, read as text; and what they must say of themselves."""

from __future__ import annotations

import plistlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "swift_package"
SOURCES = sorted((PACKAGE / "Sources").rglob("*.swift"))
# APIs that need a declared reason, by the category that the privacy manifest names
# (https://developer.apple.com/documentation/bundleresources/describing-use-of-required-reason-api)
REASONED = {
    "NSPrivacyAccessedAPICategoryDiskSpace": r"systemFreeSize|volumeAvailableCapacity|statfs",
    "NSPrivacyAccessedAPICategoryUserDefaults": r"UserDefaults",
    "NSPrivacyAccessedAPICategoryFileTimestamp": r"creationDate|odificationDate",
    "NSPrivacyAccessedAPICategorySystemBootTime": r"systemUptime|mach_absolute_time",
    "NSPrivacyAccessedAPICategoryActiveKeyboards": r"activeInputModes",
}


def code(path: Path) -> str:
    """Without comments and texts."""
    text = re.sub(r'"""[\s\S]*?"""|"(?:\\.|[^"\\\n])*"', '""', path.read_text(encoding="utf-8"))
    return re.sub(r"//.*", "", text)


FORBIDDEN = {
    "try!": r"\btry!",
    "as!": r"\bas!",
    "force unwrap": r"[\w\)\]]!(?![=\w])",
    "unchecked Sendable": r"@unchecked",
    "nonisolated(unsafe)": r"nonisolated\(unsafe\)",
    "fatalError": r"\bfatalError\b",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_nothing_forbidden_is_in_the_sources(name: str) -> None:
    assert len(SOURCES) > 40
    found = [
        f"{path.relative_to(PACKAGE)}: {match.group()}"
        for path in SOURCES
        for match in re.finditer(FORBIDDEN[name], code(path))
    ]
    assert found == []


def test_the_scan_sees_what_is_forbidden() -> None:
    line = "let a = try! f(); b! + c()!.d; e as! F"
    assert re.search(FORBIDDEN["try!"], line)
    assert len(re.findall(FORBIDDEN["force unwrap"], "b! + c()!.d")) == 2
    assert not re.search(FORBIDDEN["force unwrap"], "a != b")


def test_every_api_that_needs_a_reason_is_declared_and_no_other() -> None:
    manifest = PACKAGE / "Sources" / "DiffusionCoreML" / "PrivacyInfo.xcprivacy"
    declared = plistlib.loads(manifest.read_bytes())
    names = {entry["NSPrivacyAccessedAPIType"] for entry in declared["NSPrivacyAccessedAPITypes"]}
    library = [p for p in SOURCES if "mdm-" not in str(p.relative_to(PACKAGE))]
    used = {
        name
        for name, pattern in REASONED.items()
        if any(re.search(pattern, code(path)) for path in library)
    }
    assert names == used
    assert declared["NSPrivacyTracking"] is False


def test_every_public_symbol_has_a_comment() -> None:
    bare: list[str] = []
    for path in SOURCES:
        if "CoreMLShim" in str(path) or "mdm-" in str(path.relative_to(PACKAGE)):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if not re.match(r"\s*(public|@MainActor|@Observable)\b", line):
                continue
            above = number - 1
            while above >= 0 and re.match(r"\s*@", lines[above]):
                above -= 1
            declared = re.match(r"\s*public .*?(extension)\b", line)
            if not declared and not lines[above].strip().startswith("///"):
                bare.append(f"{path.name}:{number + 1} {line.strip()}")
    assert bare == []
