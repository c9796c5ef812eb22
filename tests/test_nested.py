"""The layout of one package per way through a level, against the network it was cut from."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small import around, plain
from tolerances import BUNDLE_PICTURE, PACKAGE_FP16, PACKAGE_FP32

from mdm_apple.cli.inspect_command import command as inspect_command
from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.compress.palettize import palettize
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.errors import BundleError
from mdm_apple.conversion.execute import Watch
from mdm_apple.conversion.inspect.inspect import inspect_bundle
from mdm_apple.conversion.layouts.nested import nested_parts, skip_shapes
from mdm_apple.conversion.psnr import closeness, picture_psnr
from mdm_apple.conversion.run.packages import Denoiser
from mdm_apple.conversion.run.runtime import open_bundle_runtime
from mdm_apple.conversion.source.model import ModelSource, random_source
from mdm_apple.conversion.verify.verify import VerifyOptions, verify, verify_source
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.torch.load import open_runtime

pytest_plugins = ["bundles"]


def test_packages_are_the_ways_through_the_levels(nested: Bundle) -> None:
    packages = {p.name: p for p in nested.manifest.packages}
    assert list(packages) == ["text_encoder", "conditioning", "down_16", "core_8", "up_16"]
    assert [p.side for p in packages.values()] == [None, None, 16, 8, 16]
    assert packages["core_8"].compute == "cpuAndNeuralEngine"
    assert packages["conditioning"].compute == "cpuAndGPU"
    assert [level.features for level in nested.manifest.levels] == [None, "features_8"]


def test_packages_for_the_neural_engine_break_no_rule(nested: Bundle) -> None:
    meant = [p for p in inspect_bundle(nested).packages if p.for_neural_engine]
    assert [p.name for p in meant] == ["down_16", "core_8", "up_16"]
    for package in meant:
        assert package.first_errors == ()
        assert "linear" not in package.operations
        assert "matmul" not in package.operations


def test_inspection_puts_the_layers_of_training_beside(nested: Bundle, tiny_bundle: Bundle) -> None:
    done = CliRunner().invoke(
        inspect_command, [str(nested.path), "--beside", str(tiny_bundle.path), "--json"]
    )
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert sum(p["errors"] for p in data["packages"] if p["for_neural_engine"]) == 0
    (whole,) = (p for p in data["beside"]["packages"] if p["name"] == "denoiser")
    assert whole["errors"] >= whole["findings"]["linear"] > 10
    done = CliRunner().invoke(
        inspect_command, [str(nested.path), "--beside", str(tiny_bundle.path)]
    )
    assert "denoiser: only in tiny.bundle" in done.stdout
    assert "core_8: only in nested.bundle" in done.stdout
    rows = done.stdout.split("conditioning\n")[1].splitlines()
    assert rows[0].split()[0] == "operations"
    assert len(rows[0].split()) == 3


def test_chain_predicts_what_torch_does_at_every_level(
    nested: Bundle, tiny_source: ModelSource
) -> None:
    exact = verify_source(nested, tiny_source, VerifyOptions(precision="fp32", prompts=2))
    stored = verify_source(nested, tiny_source, VerifyOptions(precision="fp16", prompts=2))
    assert {row.side for row in exact.rows} == {16, 8}
    assert exact.worst >= PACKAGE_FP32
    assert stored.worst >= PACKAGE_FP16
    assert {r.package for r in stored.ranges} == {p.name for p in nested.manifest.packages}
    assert verify(nested).passed


def test_chain_of_other_weights_fails(nested: Bundle, tiny_source: ModelSource) -> None:
    for name in ("out_adapter.weight", "in_adapter.weight", "inner_unet.conv_in.weight"):
        other = dataclasses.replace(tiny_source, net=copy.deepcopy(tiny_source.net))
        with torch.no_grad():
            other.net.get_parameter(name)[0, 0, 1, 1] += 0.5
        assert not verify_source(nested, other, VerifyOptions(prompts=1)).passed


def test_pictures_equal_those_of_the_network(nested: Bundle, model_folder: Path) -> None:
    prompts = [Prompt("red heart", 3)]
    sampler = SamplerConfig("ddim", num_steps=3, guidance_scale=2.0)
    runtime, _ = open_bundle_runtime(nested.path)
    for stop_at in (None, 8):
        wanted = finish(generate(open_runtime(model_folder), prompts, sampler, stop_at))
        got = finish(generate(runtime, prompts, sampler, stop_at))
        assert [g.shape for g in got] == [w.shape for w in wanted]
        for reference, picture in zip(wanted, got, strict=True):
            assert picture_psnr(reference, picture) >= BUNDLE_PICTURE


def test_stopping_early_runs_no_package_of_larger_levels(nested: Bundle) -> None:
    denoiser = Denoiser(nested, "fp16")
    watches: dict[str, Watch] = {}
    x = np.random.RandomState(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    text = {"text_features": np.ones((1, 16, 32), np.float32), "text_mask": np.ones((1, 16))}
    conditioning = denoiser.condition({k: v.astype(np.float32) for k, v in text.items()})
    denoiser.predict([x], 500, conditioning, watches, first_level=1)
    assert set(watches) == {"core_8"}


def test_monolith_still_refuses_to_stop(tiny_bundle: Bundle) -> None:
    denoiser = Denoiser(tiny_bundle, "fp16")
    with pytest.raises(BundleError, match="cannot stop at 8"):
        denoiser.predict([np.zeros((1, 3, 8, 8), np.float32)], 1, {}, first_level=1)


def test_parts_of_three_levels_with_attention_everywhere_give_the_whole() -> None:
    """Text goes to blocks on the way down and up of every level; the middle one is normalised."""
    middle = around(plain(), num_attention_layers=(0, 1), normalize_input=True)
    outer = around(middle, num_attention_layers=(0, 1))
    config = ModelConfig(outer, side=32, text=TextConfig(max_tokens=5))
    source = random_source(config, 4)
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(1, 3, side, side, generator=generator) for side in config.sides]
    features, mask = torch.randn(1, 5, 16, generator=generator), torch.ones(1, 5)
    mask[0, 3:] = 0
    with torch.inference_mode():
        tembs = source.net.embed(torch.tensor([300.0]))
        conditioning = source.net.condition(features, mask)
        wanted = source.net.denoise(x, tembs, conditioning)
        for compute in ("gpu", "ane"):
            known = text_inputs(source, features, mask, compute)
            for side, image, temb in zip(config.sides, x, tembs, strict=True):
                known[f"x_{side}"] = image
                known[f"temb_{side}"] = temb + conditioning.pooled
            for part in nested_parts(source, compute):
                for name, example in part.inputs.items():
                    assert known[name].shape == example.shape, name
                outputs = part.module(*(known[name] for name in part.inputs))
                known |= dict(zip(part.outputs, outputs, strict=True))
            for side, reference in zip(config.sides, wanted, strict=True):
                got = known[f"prediction_{side}"]
                assert closeness(reference.numpy(), got.numpy()).psnr > 90


def text_inputs(
    source: ModelSource, features: torch.Tensor, mask: torch.Tensor, compute: str
) -> dict[str, torch.Tensor]:
    from mdm_apple.conversion.layouts.conditioning import conditioning_part

    part = conditioning_part(source, "ane" if compute == "ane" else "gpu")
    return dict(zip(part.outputs, part.module(features, mask), strict=True))


@pytest.mark.guards("a slip of precedence in the size of a level")
def test_skips_are_those_of_a_run(tiny_source: ModelSource) -> None:
    net, config = tiny_source.net, tiny_source.config
    with torch.inference_mode():
        h = net.conv_in(torch.zeros(1, 3, 16, 16))
        _, skips = net.run_down(h, torch.zeros(1, config.model.time_dim), (), None)
    assert skip_shapes(config.model, 16) == [tuple(s.shape) for s in skips]


def test_compressed_chain_still_predicts(nested: Bundle, tmp_path: Path) -> None:
    bundle, report = palettize(nested, tmp_path / "six.bundle", Setting(6, group=16))
    assert report.bytes_after < report.bytes_before
    assert 20 < verify(bundle, options=VerifyOptions(precision="fp32")).worst < 60
