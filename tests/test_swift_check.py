"""`mdm-generate check`: the golden record as Swift reads it, by packages that really compute.

The self-test of a device with Core AI makes the same prediction. Every run starts a server.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_cache import converted
from coreai_wheels import needs_coreai
from swift_pictures import run
from swift_tools import Dump

from mdm_apple.config.convert_options import ConvertOptions
from mdm_apple.conversion.bundle.folder import MANIFEST, Bundle, finish_bundle
from mdm_apple.conversion.bundle.golden import read_golden
from mdm_apple.conversion.psnr import closeness
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.source.model import ModelSource
from mdm_apple.conversion.verify.ladder import bundle_predict, text_of
from mdm_apple.storage.tensorfile import read_tensors, write_tensors

pytest_plugins = ["bundles", "swift_bundles"]


@pytest.fixture(scope="session")
def coreai(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("coreai") / "tiny.bundle"
    return converted(tiny_source, out, ConvertOptions("nested", format="coreai"))


def in_python(bundle: Bundle) -> float:
    """The same prediction: the first prompt at the middle of the recorded noise levels."""
    text, record = read_golden(
        bundle.file(bundle.manifest.golden.path), bundle.manifest.golden, bundle.sides
    )
    denoiser = Denoiser(bundle, "fp16")
    predict = bundle_predict(denoiser, denoiser.condition(text_of(bundle, text, 0)))
    probe = record.probes[len(record.probes) // 2]
    answers = predict([x[:1] for x in probe.x_t], probe.t - 1, probe.target)
    return min(
        closeness(wanted[:1], got).psnr
        for wanted, got in zip(probe.prediction, answers, strict=True)
    )


def checked(program: list[str], bundle: Bundle) -> float:
    done = run([program[0], "check", *program[1:]], bundle.path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["floor"] == 40
    assert "remark" not in found
    return found["psnr"]


@pytest.mark.parametrize(
    "kind",
    [
        "nested",
        "student",
        pytest.param("longest", marks=pytest.mark.slow),
        pytest.param("functions", marks=pytest.mark.slow),
    ],
)
def test_the_prediction_is_as_close_as_python_finds_it(
    program: list[str], kind: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    found = checked(program, bundle)
    assert found >= 55
    assert found == pytest.approx(in_python(bundle), abs=0.1)


def test_a_record_of_another_network_is_told_apart(
    program: list[str], nested: Bundle, tmp_path: Path
) -> None:
    """The twin: noise of a fiftieth of the largest prediction."""
    folder = tmp_path / "other.bundle"
    shutil.copytree(nested.path, folder)
    place = folder / nested.manifest.golden.path
    tensors = {name: np.array(value) for name, value in read_tensors(place).items()}
    noise = np.random.RandomState(0)
    for name, value in tensors.items():
        if name.startswith("prediction_"):
            drawn = noise.standard_normal(value.shape) * np.abs(value).max() * 0.02
            tensors[name] = (value + drawn).astype(np.float32)
    write_tensors(place, tensors)
    finish_bundle(folder, nested.manifest)
    done = run([program[0], "check", *program[1:]], folder)
    assert done.returncode == 1
    assert done.stdout == ""
    found = re.fullmatch(
        r"mdm-generate: self-test: reached (\d\d\.\d) dB, "
        r"expected 40\.0 dB of the golden record\.\n",
        done.stderr,
    )
    assert found is not None, done.stderr
    assert 20 < float(found[1]) < 40


@needs_coreai
def test_a_bundle_of_core_ai_is_opened_and_checked(
    dump: Dump, program: list[str], coreai: Bundle, tmp_path: Path
) -> None:
    """Behind the pipe, Apple's own runtime computes."""
    assert dump.json("bundle", coreai.path) == {"digest": coreai.manifest.digest}
    assert checked(program, coreai) >= 55
    words = ["--prompt", "red heart", "--out", tmp_path / "heart.png", "--runtime", "coreai"]
    done = run(program, coreai.path, *words)
    assert done.returncode == 1
    assert done.stderr == (
        "mdm-generate: Core AI: is not on this system; run this command on macOS 27, or add "
        "--runtime pipe.\n"
    )


@needs_coreai
def test_a_program_that_is_not_the_one_of_its_hash_is_refused(
    dump: Dump, coreai: Bundle, tmp_path: Path
) -> None:
    """As Python refuses it, though the manifest lists the file as it is."""
    folder = tmp_path / "other.bundle"
    shutil.copytree(coreai.path, folder)
    stated = folder / "core_8.aimodel" / "main.hash"
    stated.write_bytes(bytes(32))
    finish_bundle(folder, coreai.manifest)
    assert (folder / MANIFEST).is_file()
    done = dump.run("bundle", folder)
    assert done.returncode == 1
    assert b"core_8.aimodel/main.hash: is not the SHA-256 of its main.mlirb" in done.stderr
