"""Models of clips as packages: layers over frames, packages of frames, and what a manifest says."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_cache import converted, palettized
from click.testing import CliRunner
from coreai_wheels import needs_coreai
from small import around, plain, save_random_model, video
from tolerances import BUNDLE_PICTURE, PACKAGE_FP16, REWRITE
from torch import nn

from mdm_apple.cli.inspect_command import command as inspect_command
from mdm_apple.config.model import ModelConfig, TextConfig, VideoConfig
from mdm_apple.config.presets import preset
from mdm_apple.config.types import Compute
from mdm_apple.conversion.bundle.clips import check_clip, clip_of, fault_of_clip
from mdm_apple.conversion.bundle.folder import Bundle
from mdm_apple.conversion.bundle.make_manifest import function_of
from mdm_apple.conversion.bundle.manifest import VideoInfo, write_manifest
from mdm_apple.conversion.compress.compressed_network import CompressedNetwork
from mdm_apple.conversion.compress.plan import uniform_plan
from mdm_apple.conversion.compress.settings import Setting
from mdm_apple.conversion.convert import ConvertOptions
from mdm_apple.conversion.coreai.runtime import AppleRuntime
from mdm_apple.conversion.errors import BundleError, ConversionError
from mdm_apple.conversion.execute import Package
from mdm_apple.conversion.inspect.inspect import inspect_bundle
from mdm_apple.conversion.layouts.choose import fitting_compute
from mdm_apple.conversion.layouts.conditioning import conditioning_part
from mdm_apple.conversion.layouts.nested import nested_parts
from mdm_apple.conversion.neural_engine.norms import LayerNorm
from mdm_apple.conversion.neural_engine.temporal import FrameConv, TemporalAttention
from mdm_apple.conversion.psnr import closeness, picture_psnr
from mdm_apple.conversion.run.runtime import open_bundle_runtime
from mdm_apple.conversion.source.model import ModelSource, load_source, random_source
from mdm_apple.conversion.source.trajectory import PROMPTS, record_trajectory, text_inputs
from mdm_apple.conversion.verify.ladder import rewritten_rung
from mdm_apple.conversion.verify.parts import rows_against_torch
from mdm_apple.conversion.verify.verify import VerifyOptions, verify, verify_source
from mdm_apple.sampling.generate import Prompt, finish, generate
from mdm_apple.sampling.walk import SamplerConfig
from mdm_apple.torch import layers
from mdm_apple.torch.load import open_runtime

Rewrite = Callable[[Any], nn.Module]

# every layer over frames, and a weight that a twin gets wrong
LAYERS: dict[str, tuple[Callable[[], nn.Module], Rewrite, str]] = {
    "fewer": (lambda: layers.FrameDownsample(8), FrameConv, "weight"),
    "more": (lambda: layers.FrameUpsample(8), FrameConv, "weight"),
    "attention": (
        lambda: layers.TemporalAttention(64, rotary=False),
        TemporalAttention,
        "attn.qkv.weight",
    ),
    "rotary": (
        lambda: layers.TemporalAttention(64, rotary=True),
        TemporalAttention,
        "attn.pos_emb.freqs",
    ),
    "up": (lambda: layers.TemporalAttention(32, rotary=True), TemporalAttention, "mlp.main.0.bias"),
}
NESTS = {
    "tiny_video": preset("tiny_video"),
    "text": ModelConfig(
        video(plain(), num_attention_layers=(0, 1, 0), temporal_positional_encoding=True),
        side=16,
        text=TextConfig(max_tokens=7),
    ),
    "space and time": ModelConfig(
        around(video(video(plain())), temporal=True, temporal_spatial_resampling=True),
        side=64,
        text=TextConfig(max_tokens=7),
    ),
}


def randomised(layer: nn.Module) -> nn.Module:
    """The layer with numbers where it starts at zero."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.endswith("freqs"):
                spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
                parameter.copy_(spread * torch.randn(parameter.shape, generator=draw))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_over_frames_is_the_same_with_four_axes(name: str, samples: int) -> None:
    build, rewrite, weight = LAYERS[name]
    layer = randomised(build())
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.get_parameter(weight).view(-1)[-1] += 0.5
    channels = next(p for p in layer.parameters() if p.ndim > 2).shape[1]
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(samples * 4, channels, 4, 6, generator=draw)
    wanted = layer(x, samples).numpy()
    assert closeness(wanted, rewrite(layer)(x, samples).numpy()).psnr > 110
    assert closeness(wanted, rewrite(other)(x, samples).numpy()).psnr < REWRITE


@pytest.mark.parametrize("channels", [6, 96, 134])
def test_a_norm_over_channels_is_torchs(channels: int) -> None:
    norm = nn.LayerNorm(channels)
    randomised(norm)
    x = 3 + 20 * torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(0))
    wanted = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert closeness(wanted.numpy(), LayerNorm(norm)(x).numpy()).psnr > 110
    with torch.no_grad():
        norm.bias[0] += 0.5
    assert closeness(wanted.numpy(), LayerNorm(norm)(x).numpy()).psnr < REWRITE


def test_squares_of_a_norm_over_channels_stay_within_fp16() -> None:
    norm = LayerNorm(nn.LayerNorm(512)).half()
    x = torch.where(torch.arange(512) % 2 == 0, 1000.0, -1000.0).reshape(1, 512, 1, 1)
    assert (x.half() * x.half()).isinf().all()  # as they would be unscaled
    torch.testing.assert_close(norm(x.half()).float(), x / 1000, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", NESTS)
def test_a_rewritten_network_of_clips_predicts_the_same(name: str) -> None:
    source = random_source(NESTS[name], 0)
    text = text_inputs(source, PROMPTS[:1])
    record = record_trajectory(source, text, 1)
    assert rewritten_rung(source, text, record).passed
    for kind in (layers.FrameDownsample, layers.FrameUpsample, layers.TemporalAttention):
        other = dataclasses.replace(source, net=copy.deepcopy(source.net))
        layer = next(m for m in other.net.modules() if isinstance(m, kind))
        with torch.no_grad():
            next(layer.parameters()).view(-1)[0] += 0.5
        assert not rewritten_rung(other, text, record).passed


@pytest.mark.parametrize("compute", ["ane", "gpu"])
@pytest.mark.parametrize("name", NESTS)
def test_parts_of_clips_give_the_whole(name: str, compute: Compute) -> None:
    """Every part takes what its example inputs are like, frames of skips among them."""
    source = random_source(NESTS[name], 4, with_encoder=False)
    config, length = source.config, source.config.text.max_tokens if source.config.text else 0
    draw = torch.Generator().manual_seed(0)
    x = [torch.randn(1, 3, side, side, generator=draw) for side in config.sides]
    features = torch.randn(1, length, config.model.innermost.text_dim or 0, generator=draw)
    mask = (torch.arange(length) < 3)[None].float()
    with torch.inference_mode():
        tembs = source.net.embed(torch.tensor([300.0]))
        conditioning = source.net.condition(features, mask)
        wanted = source.net.denoise(x, tembs, conditioning)
        given = conditioning_part(source, compute)
        known = dict(zip(given.outputs, given.module(features, mask), strict=True))
        assert conditioning.pooled is not None
        for side, image, temb in zip(config.sides, x, tembs, strict=True):
            known |= {f"x_{side}": image, f"temb_{side}": temb + conditioning.pooled}
        for part in nested_parts(source, compute):
            for feature, example in part.inputs.items():
                assert known[feature].shape == example.shape, feature
            outputs = part.module(*(known[feature] for feature in part.inputs))
            known |= dict(zip(part.outputs, outputs, strict=True))
        other = dict(known)
        last = nested_parts(source, compute)[-1]
        other[f"skip_{config.side}_1"] = known[f"skip_{config.side}_1"].roll(1, 0)
        moved = last.module(*(other[feature] for feature in last.inputs))[0]
    for side, reference in zip(config.sides, wanted, strict=True):
        assert closeness(reference.numpy(), known[f"prediction_{side}"].numpy()).psnr > 90
    # frames in another order would be seen
    assert closeness(wanted[0].numpy(), moved.numpy()).psnr < REWRITE


def test_frames_decide_which_layers_fit() -> None:
    motion = preset("motion")
    assert fitting_compute(motion, "nested") == "ane"
    assert fitting_compute(motion, "monolith") == "gpu"
    assert fitting_compute(dataclasses.replace(motion, side=1024), "nested") == "gpu"
    assert fitting_compute(preset("mdm1024"), "nested") == "ane"  # of pictures, as ever


def test_a_manifest_describes_the_clips_of_every_model() -> None:
    assert clip_of(preset("tiny")) is None
    assert clip_of(preset("motion")) == VideoInfo((16, 16, 1), 8, 0)
    published = dataclasses.replace(preset("tiny_video"), video=None)
    assert clip_of(published) == VideoInfo((4, 1), 4, 0)


def test_clips_that_a_manifest_cannot_describe_are_refused() -> None:
    slow = dataclasses.replace(preset("tiny_video"), video=VideoConfig(4, fps=7.5))
    with pytest.raises(ConversionError, match=r"fps: a bundle takes a whole .* got 7\.5"):
        check_clip(slow)
    time = dataclasses.replace(preset("tiny_video").model, inner=preset("tiny").model.innermost)
    for _ in range(2):
        time = dataclasses.replace(
            time, channels=(32,) * 5, num_resnets=(1,) * 5, num_attention_layers=(0,) * 5,
            num_temporal_attention_layers=(0,) * 5, inner=time,
        )  # fmt: skip
    many = ModelConfig(time, side=512, text=preset("tiny").text)
    with pytest.raises(ConversionError, match="up to 256 frames, but these have 1024"):
        check_clip(many)


# --- bundles ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("clips") / "clip", preset("tiny_video"))


@pytest.fixture(scope="session")
def source(folder: Path) -> ModelSource:
    return load_source(folder)


@pytest.fixture(scope="session")
def nested(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return converted(source, tmp_path_factory.mktemp("clips") / "nested.bundle")


@pytest.fixture(scope="session")
def functions(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("clips") / "functions.bundle"
    return converted(source, out, ConvertOptions("multifunction"))


def changed(source: ModelSource) -> ModelSource:
    """The model with one weight of a layer over frames moved."""
    other = dataclasses.replace(source, net=copy.deepcopy(source.net))
    with torch.no_grad():
        other.net.get_parameter("down_blocks.1.resample.weight")[0, 0, 1] += 0.5
    return other


def test_packages_of_clips_take_canvases_and_pass_frames_on(nested: Bundle) -> None:
    packages = {p.name: p for p in nested.manifest.packages}
    assert list(packages) == ["text_encoder", "conditioning", "down_16", "core_8", "up_16"]
    shapes = {f.name: f.shape for p in packages.values() for f in (*p.inputs, *p.outputs)}
    assert shapes["x_16"] == shapes["prediction_16"] == (1, 3, 16, 16)
    assert shapes["features_8"] == (1, 32, 8, 8)
    assert [shapes[f"skip_16_{k}"] for k in range(6)] == [
        (frames, 32, 8, 8) for frames in (4, 4, 2, 2, 1, 1)
    ]
    assert packages["up_16"].compute == "cpuAndNeuralEngine"
    # at least the skips of all frames, in fp16
    assert packages["up_16"].activation_bytes > 2 * 14 * 32 * 8 * 8


def test_no_tensor_for_the_neural_engine_has_more_than_four_axes(
    nested: Bundle, functions: Bundle
) -> None:
    """Layers of training, which have five, show that this would be seen."""
    for bundle, axes in ((nested, 4), (functions, 5)):
        programs = [
            function_of(Package.open(bundle.file(p.path)), p.name)
            for p in bundle.manifest.packages
            if p.phase == "step"
        ]
        operations = [o for program in programs for o in program.operations]
        assert max(len(kind.shape) for o in operations for _, kind in o.outputs) == axes


def test_packages_of_clips_for_the_neural_engine_break_no_rule(nested: Bundle) -> None:
    meant = [p for p in inspect_bundle(nested).packages if p.for_neural_engine]
    assert [p.name for p in meant] == ["down_16", "core_8", "up_16"]
    assert [p.first_errors for p in meant] == [(), (), ()]


@pytest.mark.bundle  # pytest finds the fixture by a name
@pytest.mark.parametrize("kind", ["nested", "functions"])
def test_a_bundle_predicts_clips_as_torch_does(
    kind: str, source: ModelSource, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    report = verify_source(bundle, source, VerifyOptions(prompts=1, ladder=True))
    assert report.passed
    assert {row.side for row in report.rows} == {16, 8}
    assert report.worst >= PACKAGE_FP16
    guided = next(r for r in report.rungs if r.candidate == "guided pictures")
    assert min(guided.picture_psnr.values()) >= BUNDLE_PICTURE
    assert not verify_source(bundle, changed(source), VerifyOptions(prompts=1)).passed
    assert verify(bundle).passed  # with its own record


@pytest.mark.bundle  # pytest finds the fixture by a name
@pytest.mark.parametrize("kind", ["nested", "functions"])
def test_a_bundle_of_clips_stops_at_the_picture_model(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Its innermost level alone, which makes the key frame."""
    bundle: Bundle = request.getfixturevalue(kind)
    prompts = [Prompt("red heart", 7)]
    sampler = SamplerConfig("ddim", num_steps=3, guidance_scale=2.0)
    runtime, _ = open_bundle_runtime(bundle.path)
    for stop_at in (None, 8):
        wanted = finish(generate(open_runtime(folder), prompts, sampler, stop_at))
        got = finish(generate(runtime, prompts, sampler, stop_at))
        sides = [16, 8] if stop_at is None else [8]
        assert [g.shape for g in got] == [(1, 3, side, side) for side in sides]
        for reference, picture in zip(wanted, got, strict=True):
            assert picture_psnr(reference, picture) >= BUNDLE_PICTURE


def test_palettes_take_the_weights_of_layers_over_frames(
    nested: Bundle, source: ModelSource, tmp_path: Path
) -> None:
    small, report = palettized(nested, tmp_path / "eight.bundle", Setting(8))
    done = {w.name: w for w in report.weights if "resample" in w.name and w.package == "down_16"}
    assert len(done) == 2
    with_fp16 = VerifyOptions(prompts=2, fp16=nested)  # guided away from the second
    rungs = verify_source(small, source, with_fp16).rungs
    (compressed,) = (r for r in rungs if r.reference == "fp16 packages")
    assert compressed.passed
    assert min(row.psnr for row in compressed.rows) >= 40
    assert min(compressed.picture_psnr.values()) >= 35  # guidance triples what palettes change


def test_sensitivity_finds_the_weights_of_layers_over_frames(
    nested: Bundle, source: ModelSource
) -> None:
    """By their names, though packages hold them with another number of axes."""
    plan = [
        p
        for p in uniform_plan(nested, Setting(8))
        if p.package in ("down_16", "up_16") and "resample" in p.weight.name
    ]
    assert {p.weight.shape for p in plan} == {(32, 32, 3, 1)}
    assert {p.weight.out_axis for p in plan} == {0}
    network = CompressedNetwork(nested, source, plan)
    (key,) = [(p.package, p.weight.name) for p in plan if "down_blocks_0_resample" in p.weight.name]
    before = network.exchange({key: np.zeros((32, 32, 3, 1), np.float32)})
    layer = network.source.net.get_parameter("down_blocks.0.resample.weight")
    assert not layer.any()
    network.exchange(before)
    assert layer.any()


def test_a_bundle_of_clips_says_so(nested: Bundle) -> None:
    manifest = json.loads((nested.path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 2
    assert manifest["video"] == {"frames": [4, 1], "fps": 8, "key_frame": 0}
    assert "clips of 4 frames of 8 x 8 pixels" in (nested.path / "README.md").read_text()
    done = CliRunner().invoke(inspect_command, [str(nested.path)])
    assert done.exit_code == 0
    assert "level 16: 4 frames of 8 px" in done.stdout
    done = CliRunner().invoke(inspect_command, [str(nested.path), "--json"])
    found = json.loads(done.stdout)
    assert found["fps"] == 8
    assert [level["frames"] for level in found["levels"]] == [4, 1]


@pytest.mark.parametrize(
    ("clips", "reason"),
    [
        (VideoInfo((4,), 8, 0), "has 1 numbers of frames for 2 levels"),
        (VideoInfo((4, 4, 1), 8, 0), "has 3 numbers of frames for 2 levels"),
        (VideoInfo((8, 1), 8, 0), "has 8 frames at 16 pixels, which do not fill a square"),
        (VideoInfo((9, 1), 8, 0), "has 9 frames at 16 pixels, which do not fill a square"),
        (VideoInfo((1, 4), 8, 0), "has more frames further in"),
        (VideoInfo((4, 1), 8, 4), "shows frame 4 of 4"),
    ],
)
def test_clips_that_do_not_fit_their_levels_are_refused(
    nested: Bundle, clips: VideoInfo, reason: str
) -> None:
    assert reason in str(fault_of_clip(dataclasses.replace(nested.manifest, video=clips)))
    assert fault_of_clip(nested.manifest) is None


def test_a_manifest_with_the_frames_of_another_model_is_refused(
    nested: Bundle, tmp_path: Path
) -> None:
    copied = tmp_path / "copy.bundle"
    shutil.copytree(nested.path, copied)
    for clips, reason in (
        (VideoInfo((1, 1), 8, 0), "belongs to another model"),
        (None, "belongs to another model"),
        (VideoInfo((8, 1), 8, 0), "do not fill a square"),
    ):
        manifest = dataclasses.replace(nested.manifest, video=clips)
        (copied / "manifest.json").write_bytes(write_manifest(manifest))
        with pytest.raises(BundleError, match=reason):
            Bundle.open(copied).config()


@needs_coreai
def test_a_bundle_of_clips_in_core_ai_predicts_as_torch_does(
    source: ModelSource, nested: Bundle, tmp_path: Path
) -> None:
    bundle = converted(source, tmp_path / "coreai.bundle", ConvertOptions(format="coreai"))
    assert (bundle.manifest.video, bundle.manifest.schema) == (nested.manifest.video, 2)
    load = AppleRuntime()
    try:
        rows = rows_against_torch(bundle, source, load, "fp16")
        assert all(row.passed for row in rows)
        wrong = rows_against_torch(bundle, changed(source), load, "fp16")
        assert [row.package for row in wrong if not row.passed] == ["down_16"]
    finally:
        load.close()
