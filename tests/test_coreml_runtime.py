"""Bundles as runtimes: `mdm sample --backend coreml`, prompt to picture through the adapter.

Core ML runs on macOS only, and nothing here was run there. On other systems the executor stands
where `coremltools.models.MLModel` does, so that everything around its `predict` is run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from mdm_apple.cli import group
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.coreml import quiet_coremltools
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.run import coreml as device_runtime
from mdm_apple.conversion.run.runtime import BundleRuntime
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig

pytest_plugins = ["bundles"]

with quiet_coremltools() as coremltools:
    UNIT = coremltools.ComputeUnit


class ExecutedModel:
    """Has the part of `MLModel` that the adapter uses."""

    opened: ClassVar[dict[str, Any]] = {}  # emptied by the fixture

    def __init__(self, path: str, compute_units: Any, function_name: str | None) -> None:
        ExecutedModel.opened[Path(path).name] = compute_units
        self._program = Package.open(Path(path)).load(function_name, precision="fp16")
        self._inputs = Package.open(Path(path)).function(function_name).inputs

    def predict(self, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, kind in self._inputs.items():
            assert given[name].dtype == (np.int32 if kind.dtype == "int32" else np.float16)
            assert given[name].shape == kind.shape
        wide = {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in given.items()}
        return {n: v.astype(np.float16) for n, v in self._program(wide).items()}


@pytest.fixture
def as_if_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    ExecutedModel.opened.clear()
    monkeypatch.setattr(device_runtime, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(coremltools.models, "MLModel", ExecutedModel)


def sample(bundle: Bundle, out: Path, *more: str) -> Any:
    words = ["sample", "--model", str(bundle.path), "--prompt", "red heart", "--seed", "3"]
    words += ["--steps", "2", "--guidance", "2", "--quiet", "--out", str(out), *more]
    return CliRunner().invoke(group, words)


@pytest.mark.usefixtures("as_if_on_a_mac")
def test_prompt_to_picture_on_the_units_that_the_manifest_proposes(
    nested: Bundle, tmp_path: Path
) -> None:
    for backend in ("coreml", "reference"):
        done = sample(nested, tmp_path / f"{backend}.png", "--backend", backend)
        assert done.exit_code == 0, done.exception
    one, other = (np.asarray(Image.open(tmp_path / f"{b}.png")) for b in ("coreml", "reference"))
    assert np.array_equal(one, other)
    assert ExecutedModel.opened == {
        "text_encoder.mlpackage": UNIT.CPU_AND_GPU,
        "conditioning.mlpackage": UNIT.CPU_AND_GPU,
        "down_16.mlpackage": UNIT.CPU_AND_NE,
        "core_8.mlpackage": UNIT.CPU_AND_NE,
        "up_16.mlpackage": UNIT.CPU_AND_NE,
    }


@pytest.mark.guards("a second picture by the same runtime fails or differs")
def test_a_second_picture_is_that_of_a_fresh_runtime(tiny_bundle: Bundle) -> None:
    """Packages and text of the first one stay; elsewhere the second one then fails or differs."""
    sampler, (first, second) = SamplerConfig("ddim", 2), ([Prompt("sun", 1)], [Prompt("moon", 2)])
    used = BundleRuntime(tiny_bundle)
    finish(generate(used, first, sampler))
    again = finish(generate(used, second, sampler))
    fresh = finish(generate(BundleRuntime(tiny_bundle), second, sampler))
    for one, other in zip(again, fresh, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.usefixtures("as_if_on_a_mac")
def test_refusals_of_core_ml_are_one_sentence(
    nested: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sample(nested, tmp_path / "a.png", "--backend", "coreml", "--precision", "fp32")
    assert str(done.exception) == "precision: Core ML runs packages as they are, in fp16, not fp32."

    def fail(*_: object) -> None:
        raise RuntimeError("Error computing output.\nNSLocalizedDescription = ...")

    monkeypatch.setattr(ExecutedModel, "predict", fail)
    done = sample(nested, tmp_path / "a.png", "--backend", "coreml")
    assert isinstance(done.exception, MdmError)
    assert str(done.exception).endswith("Core ML failed (Error computing output).")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has Core ML")
def test_core_ml_is_refused_on_other_systems(tiny_bundle: Bundle, tmp_path: Path) -> None:
    done = sample(tiny_bundle, tmp_path / "a.png", "--backend", "coreml")
    assert isinstance(done.exception, MdmError)
    assert str(done.exception) == (
        "coreml: runs on macOS only; use reference, which runs a bundle on any system."
    )
    assert list(tmp_path.iterdir()) == []
