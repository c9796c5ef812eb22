"""The Swift package as an app adds it: by URL and version, from a tag of a clone."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from swift_pictures import psnr
from swift_tools import ROOT, require_swift

from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.sampling.walk import SamplerConfig

pytest_plugins = ["bundles", "swift_bundles"]

VERSION = "1.2.3"
MANIFEST = """// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "Drawing",
  platforms: [.macOS(.v15)],
  dependencies: [.package(url: "{url}", from: "{version}")],
  targets: [
    .executableTarget(
      name: "Drawing",
      dependencies: [
        .product(name: "DiffusionCoreML", package: "mdm-apple"),
        .product(name: "DiffusionPipe", package: "mdm-apple"),
        .product(name: "MatryoshkaDiffusion", package: "mdm-apple"),
      ])
  ]
)
"""
APP = """import DiffusionCoreML
import DiffusionPipe
import Foundation
import MatryoshkaDiffusion

@main
struct Drawing {
  static func main() async throws {
    let words = CommandLine.arguments
    let bundle = try BundleFolder(url: URL(filePath: words[1]))
    let pipeline = Pipeline(
      bundle: bundle, runtime: PipeRuntime(bundle: bundle, program: [words[2]]))
    let sampler = SamplerSettings(kind: .student, steps: 1, guidanceScale: 2)
    let request = PictureRequest(
      prompt: "red heart", seed: UInt32(words[3]) ?? 0, sampler: sampler)
    var values: [String: [Float]] = [:]
    for try await step in pipeline.generate(request) {
      for level in step.finished?.values ?? [] {
        values["picture_\\(level.shape[3])"] = level.values
      }
    }
    await pipeline.release()
    FileHandle.standardOutput.write(try JSONEncoder().encode(values))
  }
}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagged clone of this checkout, with what is not committed yet, without what git ignores."""
    require_swift()
    clone = tmp_path_factory.mktemp("clone") / "mdm-apple"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    listed = subprocess.run(
        [*listing, "Package.swift", "swift_package"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    git += ["-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "package"], ["tag", VERSION]):
        subprocess.run([*git, *words], cwd=clone, check=True)
    return clone


def app(folder: Path, url: str, version: str) -> subprocess.CompletedProcess[str]:
    """Build an app that depends on that version. Reaches no network and no cache of this person."""
    sources = folder / "Sources" / "Drawing"
    sources.mkdir(parents=True)
    (folder / "Package.swift").write_text(MANIFEST.format(url=url, version=version))
    (sources / "Drawing.swift").write_text(APP)
    command = [require_swift(), "build", "--disable-dependency-cache"]
    return subprocess.run(
        [*command, "--package-path", str(folder)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def drawing(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    built = app(folder, repository.as_uri(), VERSION)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stdout + built.stderr  # such as files that no target claims
    return folder / ".build" / "debug" / "Drawing"


def test_an_app_that_adds_the_package_by_url_draws_the_picture_of_the_reference(
    drawing: Path, student: Bundle, server: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    words = [str(drawing), str(student.path), str(server), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    ours = {
        name: np.array(values, np.float32).reshape(1, 3, *(2 * [int(name.split("_")[1])]))
        for name, values in json.loads(done.stdout).items()
    }
    sampler = SamplerConfig("student", 1, guidance_scale=2.0)
    assert psnr(ours, student, sampler, seed) >= 60
    assert psnr(ours, student, sampler, seed + 1) < 60  # the twin: another seed


def test_a_version_without_a_tag_is_refused(repository: Path, tmp_path: Path) -> None:
    built = app(tmp_path, repository.as_uri(), "2.0.0")
    assert built.returncode != 0
    assert "2.0.0" in built.stderr


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The manifest as SwiftPM reads it."""
    command = [require_swift(), "package", "--package-path", str(ROOT), "dump-package"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def reached(described: dict[str, Any], starts: list[str]) -> dict[str, Path]:
    """Those targets and all that they depend on, with their folders."""
    targets = {target["name"]: target for target in described["targets"]}
    found: dict[str, Path] = {}
    pending = [*starts]
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = ROOT / targets[name]["path"]
            pending += [one["byName"][0] for one in targets[name]["dependencies"]]
    return found


def readers_of_pictures(folders: dict[str, Path]) -> set[str]:
    """Files that decode PNG or deflate."""
    return {
        file.name
        for folder in folders.values()
        for file in folder.rglob("*.swift")
        if re.search(r"Inflate|Huffman|PNGReader|init\(png", file.read_text(encoding="utf-8"))
    }


def test_no_product_holds_what_only_tests_need(described: dict[str, Any]) -> None:
    shipped = reached(described, [t for p in described["products"] for t in p["targets"]])
    assert {"MatryoshkaDiffusion", "DiffusionCore", "mdm-generate"} <= set(shipped)
    assert readers_of_pictures(shipped) == set()
    assert [name for name, folder in shipped.items() if "Sources" not in folder.parts] == []
    assert not {"mdm-dump", "CoreAIShim", "CoreMLShim"} & set(shipped)


def test_the_search_sees_what_reads_pictures(described: dict[str, Any]) -> None:
    found = readers_of_pictures(reached(described, ["mdm-dump"]))
    assert {"Inflate.swift", "PNGReader.swift"} <= found


def test_the_package_index_documents_every_library(described: dict[str, Any]) -> None:
    """https://swiftpackageindex.com/validate-spi-manifest describes the file."""
    index = yaml.safe_load((ROOT / ".spi.yml").read_text(encoding="utf-8"))
    assert index["version"] == 1
    listed = {t for one in index["builder"]["configs"] for t in one["documentation_targets"]}
    libraries = {p["name"] for p in described["products"] if "library" in p["type"]}
    assert listed == libraries
