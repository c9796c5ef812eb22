"""Installed apps open the bundles of today, by the Swift reader that knew only schema 1.

tests/old/README.md says where its sources come from.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from bundle_cache import digest, kept
from swift_tools import require_swift

from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle
from mdm_apple.conversion.bundle.manifest import read_manifest, write_manifest

pytest_plugins = ["bundles", "swift_bundles"]

OLD = Path(__file__).parent / "old"
SOURCES = OLD / "swift_reader_1.tar.gz"
MAIN = """\
import Foundation

do {
  let bundle = try BundleFolder(url: URL(filePath: CommandLine.arguments[1]))
  print(bundle.manifest.digest)
} catch let error as MatryoshkaError {
  print(error.errorDescription ?? "refused")
  exit(1)
}
"""


@pytest.fixture(scope="session")
def reader() -> Path:
    """A program that opens a bundle with the old sources; built once on a machine."""
    swiftc = Path(require_swift()).with_name("swiftc")
    known = subprocess.run([str(swiftc), "--version"], capture_output=True, check=True).stdout

    def make(folder: Path) -> None:
        with tarfile.open(SOURCES) as archive:
            archive.extractall(folder, filter="data")
        (folder / "main.swift").write_text(MAIN, encoding="utf-8")
        files = sorted(map(str, folder.rglob("*.swift")))
        flags = ["-swift-version", "6", "-package-name", "old", "-module-name", "old", "-Onone"]
        command = [str(swiftc), *flags, *files, "-o", str(folder / "reader")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return kept(digest([SOURCES.read_bytes(), MAIN, known]), make) / "reader"


def opened(reader: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(reader), str(bundle)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["tiny_bundle", "nested", "functions", "student"])
def test_the_old_reader_opens_a_bundle_of_today(
    reader: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    done = opened(reader, bundle.path)
    assert (done.returncode, done.stdout.strip()) == (0, bundle.manifest.digest)


def test_the_old_reader_refuses_what_it_cannot_run(reader: Path, longest: Bundle) -> None:
    """It would pad to all of the tokens, and make another picture without a word."""
    done = opened(reader, longest.path)
    said = "manifest.json: schema is 2, but this version reads 1; update the package.\n"
    assert (done.returncode, done.stdout) == (1, said)


def keys(value: Any) -> Any:
    """The names in a document in their order, without its values."""
    if isinstance(value, dict):
        return {name: keys(part) for name, part in value.items()}
    return [keys(part) for part in value] if isinstance(value, list) else None


def test_a_bundle_of_today_has_the_manifest_of_before(nested: Bundle, longest: Bundle) -> None:
    """Field by field in the old order; and an old manifest is written again byte for byte."""
    text = (OLD / "model.bundle" / MANIFEST).read_text(encoding="utf-8")
    assert write_manifest(read_manifest(text, MANIFEST)) == text.encode()
    before, today, younger = (
        json.loads(one)
        for one in (text, nested.file(MANIFEST).read_bytes(), longest.file(MANIFEST).read_bytes())
    )
    assert today["schema"] == before["schema"] == 1
    assert list(today) == list(before)
    for name in ("text", "levels", "sampler", "golden", "peak_memory", "provenance"):
        assert json.dumps(keys(one(today[name]))) == json.dumps(keys(one(before[name]))), name
    assert younger["schema"] == 2
    assert keys(younger["text"]) != keys(before["text"])  # the twin


def one(value: Any) -> Any:
    """The first of a list, whose length is the model's affair."""
    return one(value[0]) if isinstance(value, list) and value else value
