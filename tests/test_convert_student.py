"""A distilled model as a bundle: its extra inputs are tables, and it makes the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_cache import converted
from click.testing import CliRunner
from small import around, plain, random_weights
from students import save_random_student
from tolerances import BUNDLE_PICTURE, PACKAGE_RANDOM

from mdm_apple.cli import group
from mdm_apple.config.model import ModelConfig
from mdm_apple.config.shapes import state_shapes
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress.palettize import palettize
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.psnr import picture_psnr
from mdm_apple.conversion.run.runtime import open_bundle_runtime
from mdm_apple.conversion.source.model import load_source
from mdm_apple.conversion.verify.verify import VerifyOptions, verify
from mdm_apple.errors import MdmError
from mdm_apple.sampling.generate import Prompt, clean_estimate, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.storage.model_folder import (
    load_model_config,
    load_tokenizer,
    load_weights,
    save_model,
)
from mdm_apple.torch.load import open_runtime
from mdm_apple.training.boot import BootConfig, student_config

PROMPTS = [Prompt("red heart", 3), Prompt("green apple", 4)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random everywhere, its extra inputs too, so that they count."""
    return save_random_student(tmp_path_factory.mktemp("students"))


@pytest.fixture(scope="module", params=["monolith", "nested"])
def bundle(
    request: pytest.FixtureRequest, student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "student.bundle"
    return converted(load_source(student), out, ConvertOptions(request.param))


def test_the_manifest_says_how_a_student_is_run(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.student is not None
    assert (manifest.student.starts, manifest.student.targets) == ((1000, 500), (1000, 500, 0))
    assert manifest.student.weights[0] == 1.0
    assert manifest.student.weights[-1] == 4.0
    assert len(manifest.student.weights) == 13
    assert (manifest.guidance, manifest.sampler.kind) == ("embedded", "student")
    tables = bundle.tables()
    for level in manifest.levels:
        assert len(tables[level.target_time or ""]) == 3
        assert len(tables[level.guidance or ""]) == 13


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 2.75])
def test_pictures_from_prompts_equal_torch(
    bundle: Bundle, student: Path, steps: int, weight: float
) -> None:
    sampler = SamplerConfig("student", steps, guidance_scale=weight)
    ours, _ = open_bundle_runtime(bundle.path)
    made = finish(generate(ours, PROMPTS, sampler))
    wanted = finish(generate(open_runtime(student), PROMPTS, sampler))
    for a, b in zip(wanted, made, strict=True):
        assert picture_psnr(a, b) > BUNDLE_PICTURE


def test_weight_and_target_are_heard(bundle: Bundle) -> None:
    """The twin: a wrong row of either table would show in the comparison with torch."""
    runtime, _ = open_bundle_runtime(bundle.path)
    noise = [np.full((1, 3, side, side), 0.5, np.float32) for side in bundle.sides]

    def answer(weight: float, target: int) -> np.ndarray:
        return runtime.jumper(PROMPTS[:1], weight, 0)(noise, 999, target)[0]

    here = answer(1.0, 0)
    assert np.abs(answer(1.25, 0) - here).max() > 1e-3
    assert np.abs(answer(1.0, 500) - here).max() > 1e-3


def test_the_first_estimate_equals_torch(bundle: Bundle, student: Path) -> None:
    ours, _ = open_bundle_runtime(bundle.path)
    made, wanted = (clean_estimate(r, PROMPTS) for r in (ours, open_runtime(student)))
    for a, b in zip(wanted, made, strict=True):
        assert picture_psnr(a, b) > BUNDLE_PICTURE


def test_verify_follows_the_students_own_steps(bundle: Bundle, student: Path) -> None:
    report = verify(bundle, student, VerifyOptions(prompts=2))
    assert {row.t for row in report.rows} == {1000, 500}
    assert report.worst > PACKAGE_RANDOM
    assert min(report.picture_psnr.values()) > BUNDLE_PICTURE
    assert verify(bundle).worst > PACKAGE_RANDOM  # by its golden record alone


def test_a_student_with_one_moved_weight_fails(
    bundle: Bundle, student: Path, tmp_path: Path
) -> None:
    weights = load_weights(student)
    name = "inner_unet.temb_target_layer2.bias"
    weights[name] = weights[name] + np.float32(0.2)
    other = tmp_path / "other"
    save_model(
        other,
        load_model_config(student),
        weights,
        text_encoder=load_weights(student, "text_encoder"),
        tokenizer=load_tokenizer(student),
    )
    assert verify(bundle, other, VerifyOptions(prompts=2)).worst < PACKAGE_RANDOM


def test_palettes_keep_what_a_student_is(bundle: Bundle, tmp_path: Path) -> None:
    small, _ = palettize(bundle, tmp_path / "small.bundle", 8)
    assert small.manifest.student == bundle.manifest.student
    assert verify(small, options=VerifyOptions(floor=10)).passed


def test_weights_between_the_rows_are_refused(bundle: Bundle) -> None:
    runtime, _ = open_bundle_runtime(bundle.path)
    sampler = SamplerConfig("student", 1, guidance_scale=1.1)
    with pytest.raises(MdmError, match=r"takes 1, 1.25, .* got 1.1; give one of these"):
        finish(generate(runtime, PROMPTS, sampler))


def test_a_wordless_student_converts(tmp_path: Path) -> None:
    core = plain(text_dim=None, channels=(32,), num_resnets=(1,), num_attention_layers=(0,))
    config = student_config(ModelConfig(around(core), side=8), BootConfig())
    folder = tmp_path / "student"
    save_model(folder, config, random_weights(state_shapes(config.model), 5))
    made = converted(load_source(folder), tmp_path / "student.bundle")
    assert made.manifest.student is not None
    assert made.manifest.student.weights == ()
    assert verify(made, folder, VerifyOptions(prompts=1)).passed


def test_one_picture_from_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "heart.png"
    asked = ["sample", "--model", bundle.path, "--backend", "reference", "--prompt", "red heart"]
    asked += ["--sampler", "student", "--steps", "1", "--guidance", "2", "--out", out, "--quiet"]
    result = CliRunner().invoke(group, [*map(str, asked)])
    assert result.exit_code == 0, result.exception
    assert out.is_file()
