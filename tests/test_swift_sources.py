"""What the Swift sources must not hold, read as text; and what they must say of themselves."""

from __future__ import annotations

import plistlib
import re
import subprocess
from pathlib import Path

import pytest
from swift_tools import require_swift

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
@pytest.mark.guards("an error while a preview is made ends the app")
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


DECLARATION = re.compile(
    r"(?:@\w+(?:\(\w+\))?\s+)*(?P<words>(?:[a-z]+(?:\(set\))?\s+)*?)"
    r"(?P<kind>func|var|let|init|struct|enum|class|actor|protocol|typealias|case|subscript)\b"
)


def undocumented(text: str) -> list[str]:
    """Public declarations without a comment above: cases of public enums and what public protocols
    demand among them, which carry no `public` of their own."""
    bare: list[str] = []
    scopes: list[str] = []  # what each open brace belongs to
    documented, opened = False, ""
    for line in text.splitlines():
        stripped = line.strip()
        found = DECLARATION.match(stripped)
        if found:
            kind, inside = found["kind"], scopes[-1] if scopes else ""
            demanded = inside == "public protocol" or (inside == "public enum" and kind == "case")
            if ("public" in found["words"].split() or demanded) and not documented:
                bare.append(stripped)
            opened = ("public " if "public" in found["words"].split() else "") + kind
        elif stripped.startswith(("extension", "public extension")):
            opened = "extension"
        for sign in re.findall(r"[{}]", re.sub(r'//.*|"(?:\\.|[^"\\])*"', "", line)):
            if sign == "{":
                scopes.append(opened)
                opened = ""
            elif scopes:
                scopes.pop()
        if stripped:
            documented = stripped.startswith("///") or (
                documented and stripped.startswith(("@", "#if", "#endif"))
            )
    return bare


def test_every_public_symbol_has_a_comment() -> None:
    bare = {
        f"{path.name}: {line}"
        for path in SOURCES
        if "Shim" not in str(path) and "mdm-" not in str(path.relative_to(PACKAGE))
        for line in undocumented(path.read_text(encoding="utf-8"))
    }
    assert bare == set()


def test_the_search_for_comments_sees_what_is_bare() -> None:
    text = """
/// Documented.
public struct A: Sendable {
  public let b: Int
  /// Documented.
  @MainActor
  public static func c() { let inner = 1 }
  private let d = 2
}
/// Documented.
public enum E {
  case one
  /// Documented.
  case two
  public var f: Int { switch self { case .one: 1; case .two: 2 } }
}
/// Documented.
public protocol P {
  func g()
}
enum Q { case three }
public actor R {}
"""
    assert [line.split("{")[0].strip() for line in undocumented(text)] == [
        "public let b: Int",
        "case one",
        "public var f: Int",
        "func g()",
        "public actor R",
    ]


def test_the_catalogues_name_symbols_that_exist() -> None:
    catalogues = sorted((PACKAGE / "Sources").rglob("*.docc"))
    pages = [page for catalogue in catalogues for page in catalogue.glob("*.md")]
    assert len(pages) >= 4
    for page in pages:
        sources = page.parents[1].rglob("*.swift")
        words = {w for s in sources for w in re.findall(r"\w+", s.read_text(encoding="utf-8"))}
        text = re.sub(r"```[\s\S]*?```", "", page.read_text(encoding="utf-8"))
        for link in re.findall(r"``([^`\n]+)``", text):
            parts = [p for p in re.split(r"\W+", link) if p and p != "_"]
            if parts != [page.parents[1].name]:
                assert set(parts) <= words, f"{page.name}: {link}"
        for name in re.findall(r"<doc:(\w+)>", text):
            assert (page.parent / f"{name}.md").is_file()


def test_the_example_is_swift() -> None:
    """Parsed alone: SwiftUI is not on every machine."""
    swiftc = Path(require_swift()).with_name("swiftc")
    sources = sorted((PACKAGE / "Examples").rglob("*.swift"))
    assert sources
    command = [str(swiftc), "-parse", "-swift-version", "6", *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
