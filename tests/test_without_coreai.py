"""Without Apple's packages for Core AI, its commands say so in one sentence.

Every other command works. `make without-coreai` runs this file with the packages hidden, and sees
that the tests which need them are skipped.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_server import CommandServer, command_server
from device_records import cell
from hidden_packages import hiding_path, run_without
from small import random_state

from mdm_apple.cli import COMMANDS
from mdm_apple.config.presets import preset
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.device.results import append
from mdm_apple.conversion.run.serve_frames import pack_tensor, pack_text, read_frame

SENTENCE = "pip install 'mdm-apple[coreai]', or leave out --format coreai."


@pytest.mark.bundle
def test_converting_refuses_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "tiny.bundle"
    done = run_without(None, "convert", "--preset", "tiny", "--format", "coreai", "--out", str(out))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith(SENTENCE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bundle
@pytest.mark.parametrize("command", ["verify", "inspect", "palettize", "sample"])
def test_a_bundle_is_refused_before_it_is_opened(tmp_path: Path, command: str) -> None:
    bundle = tmp_path / "tiny.bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text('{"format": "coreai"}')
    arguments = {
        "palettize": ("palettize", str(bundle), "--bits", "6", "--out", str(tmp_path / "out")),
        "sample": ("sample", "a cat", "--model", str(bundle), "--out", str(tmp_path / "cat.png")),
    }.get(command, (command, str(bundle)))
    done = run_without(None, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("mdm: coreai: needs Python 3.11"), done.stderr
    assert "pip install 'mdm-apple[coreai]'" in done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[CommandServer]:
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PYTHONPATH", hiding_path())
        changed.setenv("MDM_HIDDEN", "coreai coreai_torch")
        with command_server() as started:
            yield started


@pytest.fixture(scope="module")
def bundle(
    server: CommandServer, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Path:
    """Made by the command, so not from the cache of bundles."""
    folder = tmp_path_factory.mktemp("bundles")
    words = ["convert", model_folder, "--layout", "monolith", "--out", "tiny.bundle", "--quiet"]
    done = server.ask(words, folder)
    assert (done.code, done.stderr) == (0, "")
    return folder / "tiny.bundle"


@dataclass(frozen=True)
class Given:
    """Folders for a command: a model, its bundle, captioned pictures, and an Apple checkpoint."""

    model: Path
    bundle: Path
    pictures: Path
    pth: Path


SAMPLE = ["sample", "a cat", "--steps", "1", "--out", "cat.png"]
FEW = ["--steps", "1", "--batch-size", "2"]
# By name: the words of a command, and a file that it leaves.
OTHERS: dict[str, tuple[Callable[[Given], list[str | Path]], str | None]] = {
    "data": (lambda given: ["data", "check", given.pictures], None),
    "shards": (
        lambda given: ["shards", "pack", given.pictures, "--samples", "8", "--out", "shards"],
        "shards/000000.tar",
    ),
    "train": (
        lambda given: [
            *("train", "--preset", "tiny", "--data", given.pictures, *FEW, "--out", "run")
        ],
        "run/model.safetensors",
    ),
    "distill": (
        lambda given: [
            *("distill", "--teacher", given.model, "--captions", "captions.txt", *FEW),
            *("--out", "student"),
        ],
        "student/model.safetensors",
    ),
    "sample a model": (lambda given: [*SAMPLE, "--model", given.model], "cat.png"),
    "sample a bundle": (lambda given: [*SAMPLE, "--model", given.bundle], "cat.png"),
    "upscale": (
        lambda given: [
            *("upscale", given.pictures / "00.png", "--model", given.model),
            *("--steps", "1", "--out", "large.png"),
        ],
        "large.png",
    ),
    "import": (
        lambda given: ["import", given.pth, "--preset", "tiny", "--out", "imported"],
        "imported/model.safetensors",
    ),
    "export": (lambda given: ["export", given.model, "--out", "small"], "small/config.json"),
    "embed": (
        lambda given: ["embed", "--model", given.model, "--prompt", "a cat", "--out", "f.features"],
        "f.features",
    ),
    "palettize": (
        lambda given: ["palettize", given.bundle, "--bits", "4", "--out", "four.bundle"],
        "four.bundle/manifest.json",
    ),
    "verify": (
        lambda given: ["verify", given.bundle, "--model", given.model, "--prompts", "1"],
        None,
    ),
    "evaluate": (
        lambda given: [
            *("evaluate", "--model", given.model, "--data", given.pictures),
            *("--count", "4", "--steps", "1"),
        ],
        None,
    ),
    "inspect a bundle": (lambda given: ["inspect", given.bundle], None),
    "inspect a package": (lambda given: ["inspect", given.bundle / "denoiser.mlpackage"], None),
    "inspect a model": (lambda given: ["inspect", given.model], None),
    "bench device": (lambda given: ["bench", "device", given.bundle, "--plan"], None),
}
ELSEWHERE = {
    "convert": "makes the bundle of these tests",
    "index": "needs shards first: test_shards_are_indexed_without_them",
    "run": "test_a_package_runs_without_them",
    "serve-bundle": "test_a_bundle_is_served_without_them",
    "doctor": "test_results_are_read_without_them",
    "fetch": "test_a_download_is_tried_without_them",
    "demo": "takes minutes; it asks has_coreai, and calls the commands above",
}


@pytest.mark.unit
def test_every_command_is_tried() -> None:
    assert {name.split()[0] for name in OTHERS} | set(ELSEWHERE) == set(COMMANDS)


@pytest.fixture(scope="module")
def given(
    bundle: Path, model_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Given:
    weights = random_state(preset("tiny").model)
    pth = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, pth)
    return Given(model_folder, bundle, pictures, pth)


@pytest.mark.bundle
@pytest.mark.parametrize("name", OTHERS)
def test_other_commands_do_not_need_them(
    server: CommandServer, given: Given, tmp_path: Path, name: str
) -> None:
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    words, made = OTHERS[name]
    done = server.ask(words(given), tmp_path)
    assert done.code == 0, done.stderr
    assert "coreai" not in done.stderr
    assert made is None or (tmp_path / made).is_file(), list(tmp_path.rglob("*"))


@pytest.mark.bundle
def test_shards_are_indexed_without_them(
    server: CommandServer, pictures: Path, tmp_path: Path
) -> None:
    for words in (
        ["shards", "pack", pictures, "--out", "shards"],
        ["index", "shards", "--out", "all.index"],
    ):
        done = server.ask(words, tmp_path)
        assert done.code == 0, done.stderr
    assert (tmp_path / "all.index").is_dir()


@pytest.mark.bundle
def test_results_are_read_without_them(server: CommandServer, tmp_path: Path) -> None:
    append(tmp_path / "mac.jsonl", cell())
    done = server.ask(["doctor", "mac.jsonl"], tmp_path)
    assert done.code == 0, done.stderr
    assert "a.bundle" in done.stdout


@pytest.mark.bundle
def test_a_download_is_tried_without_them(server: CommandServer, given: Given) -> None:
    """There is nothing to download from; that is all it says."""
    folder = given.pth.parent
    done = server.ask(["fetch", "text-encoder", "--out", "no-model"], folder)
    assert done.code == 1
    assert "no-model" in done.stderr
    assert "coreai" not in done.stderr


@pytest.mark.bundle
def test_a_package_runs_without_them(server: CommandServer, bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    package = opened.package("conditioning")
    words: list[str | Path] = ["run", opened.file(package.path), "--out", "out"]
    for feature in package.inputs:
        np.save(tmp_path / f"{feature.name}.npy", np.ones(feature.shape, np.float32))
        words += ["--input", f"{feature.name}={feature.name}.npy"]
    done = server.ask(words, tmp_path)
    assert done.code == 0, done.stderr
    made = {file.stem for file in (tmp_path / "out").iterdir()}
    assert made == {feature.name for feature in package.outputs}


@pytest.mark.bundle
def test_a_bundle_is_served_without_them(bundle: Path) -> None:
    package = Bundle.open(bundle).package("conditioning")
    values = [pack_tensor(f.name, np.ones(f.shape, np.float32)) for f in package.inputs]
    requests = [
        b"H" + struct.pack("<H", 1),
        b"L" + pack_text(package.name),
        b"R" + struct.pack("<I", 0) + pack_text(package.name) + struct.pack("<H", len(values)),
        b"G" + struct.pack("<I", 0) + pack_text(package.outputs[0].name),
    ]
    requests[2] += b"".join(values)
    done = subprocess.run(
        [sys.executable, "-m", "mdm_apple", "serve-bundle", str(bundle)],
        env={**os.environ, "PYTHONPATH": hiding_path()},
        input=b"".join(struct.pack("<I", len(frame)) + frame for frame in requests),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, kinds = io.BytesIO(done.stdout), list[bytes]()
    while (answer := read_frame(answers)) is not None:
        kinds.append(answer[0])
    assert kinds == [b"K", b"K", b"K", b"T"], done.stderr


MEASURE = """
import sys
from pathlib import Path
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.device.cells import Demand, plan
from mdm_apple.conversion.device.run import run_plan

bundle, folder = Bundle.open(Path(sys.argv[1])), Path(sys.argv[2])
demand = Demand(("executor",), (1,), package_repetitions=2, picture_repetitions=1, sustained=0)
cell = plan([bundle], demand)[0]
bundles = {bundle.manifest.digest: bundle}
(record,) = run_plan(
    [cell], bundles, folder / "records.jsonl", cache=folder / "cache", limit_minutes=10
)
assert record["status"] == "measured", record["reason"]
"""


@pytest.mark.bundle
def test_a_device_is_measured_without_them(bundle: Path, tmp_path: Path) -> None:
    """One cell of `mdm bench device`, in the process that it starts for each."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(bundle), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": hiding_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "records.jsonl").is_file()


@pytest.mark.bundle
def test_the_packages_are_really_hidden() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import coreai"],
        env={**os.environ, "PYTHONPATH": hiding_path()},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
