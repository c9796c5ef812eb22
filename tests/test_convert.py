"""Converted packages against the torch network they come from."""

from __future__ import annotations

import copy
import dataclasses
import filecmp
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cache import converted
from tolerances import BUNDLE_PICTURE, PACKAGE_FP16, PACKAGE_FP32

from mdm_apple.config.model import DiffusionConfig, ModelConfig, TextConfig
from mdm_apple.config.network import UNetConfig
from mdm_apple.config.presets import preset
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.convert import ConvertOptions, convert, convert_part
from mdm_apple.conversion.errors import BundleError, ConversionError
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.layouts.conditioning import conditioning_part
from mdm_apple.conversion.layouts.names import TEXT_FEATURES, TEXT_MASK
from mdm_apple.conversion.layouts.parts import MASKED
from mdm_apple.conversion.psnr import closeness, picture_psnr
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.run.runtime import BundleRuntime, open_bundle_runtime
from mdm_apple.conversion.source.model import ModelSource, random_source
from mdm_apple.conversion.verify.verify import VerifyOptions, verify_source
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.torch.load import open_runtime

pytest_plugins = ["bundles"]


def test_bundle_predicts_what_torch_does(tiny_bundle: Bundle, tiny_source: ModelSource) -> None:
    exact = verify_source(tiny_bundle, tiny_source, VerifyOptions(precision="fp32", prompts=3))
    stored = verify_source(tiny_bundle, tiny_source, VerifyOptions(precision="fp16", prompts=3))
    assert exact.text == "prompts"
    assert exact.worst >= PACKAGE_FP32
    assert stored.worst >= PACKAGE_FP16
    assert stored.passed


def test_bundle_of_other_weights_fails(tiny_bundle: Bundle, tiny_source: ModelSource) -> None:
    other = dataclasses.replace(tiny_source, net=copy.deepcopy(tiny_source.net))
    assert verify_source(tiny_bundle, other, VerifyOptions(prompts=1)).passed
    with torch.no_grad():
        other.net.conv_in.weight[0, 0, 1, 1] += 0.5
    report = verify_source(tiny_bundle, other, VerifyOptions(prompts=1))
    assert not report.passed
    assert report.worst < PACKAGE_FP16


def test_guided_pictures_from_prompts_equal_torch(tiny_bundle: Bundle, model_folder: Path) -> None:
    prompts = [Prompt("red heart", 3), Prompt("", 4, negative="cat face")]
    sampler = SamplerConfig("ddpm", num_steps=6, guidance_scale=2.5)
    wanted = finish(generate(open_runtime(model_folder), prompts, sampler))
    runtime, digest = open_bundle_runtime(tiny_bundle.path)
    got = finish(generate(runtime, prompts, sampler))
    assert digest == tiny_bundle.manifest.digest
    for reference, picture in zip(wanted, got, strict=True):
        assert picture.shape == reference.shape
        for row in range(2):
            assert picture_psnr(reference[row], picture[row]) >= BUNDLE_PICTURE


def test_picture_does_not_depend_on_the_batch_around_it(tiny_bundle: Bundle) -> None:
    sampler = SamplerConfig("ddim", num_steps=2)
    runtime = BundleRuntime(tiny_bundle)
    both = finish(generate(runtime, [Prompt("pizza", 1), Prompt("flag", 2)], sampler))
    alone = finish(generate(runtime, [Prompt("flag", 2)], sampler))
    for pair, one in zip(both, alone, strict=True):
        assert np.array_equal(pair[1], one[0])


def test_monolith_refuses_to_stop_early(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="cannot stop at 8"):
        finish(generate(BundleRuntime(tiny_bundle), [Prompt("", 0)], SamplerConfig(), stop_at=8))


def test_fully_masked_prompt_gives_no_cross_attention(
    tiny_bundle: Bundle, tiny_source: ModelSource
) -> None:
    features = np.random.RandomState(0).standard_normal((1, 16, 32)).astype(np.float32)
    mask = np.zeros((1, 16), np.float32)
    denoiser = Denoiser(tiny_bundle, "fp16")
    conditioning = denoiser.condition({TEXT_FEATURES: features, TEXT_MASK: mask})
    for name, value in conditioning.items():
        if name.startswith("values_") or name in ("pooled", "attention_mask"):
            assert not value.any(), name
    x_t = [np.random.RandomState(s).standard_normal((1, 3, s, s)) for s in (16, 8)]
    x_t = [x.astype(np.float32) for x in x_t]
    got = denoiser.predict(x_t, 500, conditioning)
    with torch.inference_mode():
        wanted = tiny_source.net(
            [torch.from_numpy(x) for x in x_t],
            torch.tensor([500]),
            torch.from_numpy(features),
            torch.from_numpy(mask),
        )
    for reference, prediction in zip(wanted, got, strict=True):
        assert closeness(reference.numpy(), prediction).psnr >= PACKAGE_FP16


def test_another_process_without_the_cache_makes_the_same_bytes(
    tiny_bundle: Bundle, model_folder: Path, tmp_path: Path
) -> None:
    """The one conversion that proves the cache: a stale key of tests/bundle_cache.py shows here."""
    out = tmp_path / "again.bundle"
    program = [sys.executable, "-c", "from mdm_apple.cli import main; main()"]
    done = subprocess.run(
        [*program, "convert", model_folder, "--layout", "monolith", "--out", out, "--quiet"],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = [file.path for file in tiny_bundle.manifest.files] + ["manifest.json"]
    same, different, failed = filecmp.cmpfiles(tiny_bundle.path, out, files, shallow=False)
    assert (sorted(same), different, failed) == (sorted(files), [], [])


def test_packages_take_and_give_fp16_of_batch_one(tiny_bundle: Bundle) -> None:
    denoiser = Package.open(tiny_bundle.file("denoiser.mlpackage"))
    assert denoiser.spec_version == 9  # iOS 18
    kinds = {*denoiser.inputs.values(), *denoiser.outputs.values()}
    assert all(kind.dtype == "fp16" and kind.shape[0] == 1 for kind in kinds)
    encoder = Package.open(tiny_bundle.file("text_encoder.mlpackage"))
    assert encoder.inputs["token_ids"].dtype == "int32"


def test_text_head_layers_and_projection_convert_for_ios17(tmp_path: Path) -> None:
    core = dataclasses.replace(
        preset("tiny").model.innermost, text_proj_dim=48, num_text_head_layers=1
    )
    source = random_source(ModelConfig(core, side=8, text=TextConfig(max_tokens=6)), 1)
    path = tmp_path / "conditioning.mlpackage"
    convert_part(conditioning_part(source, "gpu"), path, "iOS17", source)
    package = Package.open(path)
    assert package.spec_version == 8  # iOS 17
    features = np.random.RandomState(1).standard_normal((1, 6, 32)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0, 0]], np.float32)
    got = package.load()({TEXT_FEATURES: features, TEXT_MASK: mask})
    with torch.inference_mode():
        wanted = source.net.condition(torch.from_numpy(features), torch.from_numpy(mask))
    assert wanted.pooled is not None
    assert closeness(wanted.pooled.numpy(), got["pooled"]).psnr >= PACKAGE_FP16
    assert got["attention_mask"].tolist() == [[[[0, 0, 0, MASKED, MASKED, MASKED]]]]
    flat = [part for block in wanted.keys_values[0] for layer in block for part in layer]
    names = [name for name in got if name.startswith(("keys_", "values_"))]
    for name, reference in zip(names, flat, strict=True):
        assert closeness(reference.numpy(), got[name]).psnr >= PACKAGE_FP16


def test_model_without_text_that_normalises_its_input_converts(tmp_path: Path) -> None:
    core = UNetConfig((32,), (1,), (0,), mid_blocks=False, temb_dim=32)
    outer = UNetConfig(
        (32, 32), (1, 1), (0, 0), mid_blocks=False, temb_dim=32, normalize_input=True, inner=core
    )
    source = random_source(ModelConfig(outer, side=8), 2)
    bundle = converted(
        source, tmp_path / "plain.bundle", ConvertOptions("monolith", target="iOS26")
    )
    assert [package.name for package in bundle.manifest.packages] == ["denoiser"]
    assert bundle.manifest.guidance == "none"
    report = verify_source(bundle, source, VerifyOptions(prompts=1))
    assert report.worst >= PACKAGE_FP16
    picture = finish(
        generate(BundleRuntime(bundle), [Prompt("", 0)], SamplerConfig("dpmpp", num_steps=2))
    )
    assert picture[0].shape == (1, 3, 8, 8)


def test_unmasked_attention_and_limited_output_convert_without_an_encoder(tmp_path: Path) -> None:
    model = UNetConfig(
        (32,),
        (1,),
        (1,),
        mid_blocks=False,
        temb_dim=32,
        text_dim=16,
        masked_cross_attention=False,
    )
    config = ModelConfig(
        model, side=8, diffusion=DiffusionConfig(output_scale=0.5), text=TextConfig(max_tokens=4)
    )
    source = random_source(config, 3)
    bundle = converted(source, tmp_path / "features.bundle", ConvertOptions("monolith"))
    assert "attention_mask" not in [f.name for f in bundle.package("denoiser").inputs]
    report = verify_source(bundle, source, VerifyOptions(prompts=2))
    assert report.text == "random features"
    assert report.worst >= PACKAGE_FP16
    (x_t,) = (10 * np.ones((1, 3, 8, 8), np.float32),)
    text = {TEXT_FEATURES: np.ones((1, 4, 16), np.float32), TEXT_MASK: np.ones((1, 4), np.float32)}
    denoiser = Denoiser(bundle, "fp16")
    (out,) = denoiser.predict([x_t], 10, denoiser.condition(text))
    assert 0.1 < np.abs(out).max() <= 0.5
    with pytest.raises(BundleError, match="mdm embed"):
        finish(generate(BundleRuntime(bundle), [Prompt("red", 0)], SamplerConfig(num_steps=1)))


def test_weight_beyond_fp16_is_refused(tmp_path: Path) -> None:
    model = UNetConfig((32,), (1,), (0,), mid_blocks=False, temb_dim=32)
    source = random_source(ModelConfig(model, side=8), 0)
    with torch.no_grad():
        source.net.conv_out.weight[0, 0, 0, 0] = 70_000
    with pytest.raises(ConversionError, match=r"level\.conv_out\.weight reaches 70000"):
        convert(source, tmp_path / "large.bundle")
    assert not list(tmp_path.iterdir())
